# A message was moved or copied into Junk: the user says that it is spam.
require ["imapsieve", "vnd.dovecot.imapsieve", "environment", "variables", "copy", "vnd.dovecot.pipe"];

if environment :matches "imap.mailbox" "*" { set "junk" "${1}"; }

# From one Junk folder to the other: nothing new is said.
if environment :is "vnd.dovecot.mailbox-from" "${junk}" { stop; }
if environment :matches "vnd.dovecot.mailbox-from" ["${junk}.*", "${junk}/*"] { stop; }

pipe :copy :try "spamguard-report" "spam";
