# A message was moved or copied out of Junk: the user says that it is ham, but for the places below.
require ["imapsieve", "vnd.dovecot.imapsieve", "environment", "variables", "copy", "vnd.dovecot.pipe"];

if environment :matches "vnd.dovecot.mailbox-from" "*" { set "junk" "${1}"; }

# Into Junk again, or a subfolder of it.
if environment :is "imap.mailbox" "${junk}" { stop; }
if environment :matches "imap.mailbox" ["${junk}.*", "${junk}/*"] { stop; }

# Throwing a spam away does not make it ham. Here belong the names that watch.trash has.
if environment :is "imap.mailbox" ["Trash", "Deleted Items", "Deleted Messages"] { stop; }
if environment :matches "imap.mailbox" ["Trash.*", "Trash/*", "INBOX.Trash*", "INBOX/Trash*"] { stop; }

pipe :copy :try "spamguard-report" "ham";
