# Mail::SpamAssassin for a list of files, in one process: reads "ORDER<tab>FILE" lines, says one line for each.
#
#   perl spamassassin.pl HOME
#
# rules FILE   points of the local rules, with the scores that SpamAssassin uses beside Bayes (no network, no Bayes)
# spam FILE, ham FILE, forget FILE   teach Bayes, whose database lies in HOME
# bayes FILE   Bayes' probability, and the points that SpamAssassin gives for it
use strict;
use warnings;
use Mail::SpamAssassin;

my ($home) = @ARGV;
my $without = 0;    # score set: neither network nor Bayes
my $beside = 2;     # no network, with Bayes
my %range = (
    BAYES_00 => [0, 0.01], BAYES_05 => [0.01, 0.05], BAYES_20 => [0.05, 0.2], BAYES_40 => [0.2, 0.4],
    BAYES_50 => [0.4, 0.6], BAYES_60 => [0.6, 0.8], BAYES_80 => [0.8, 0.95], BAYES_95 => [0.95, 0.99],
    BAYES_99 => [0.99, 1.01], BAYES_999 => [0.999, 1.01],
);

sub filter {
    my ($bayes) = @_;
    my $filter = Mail::SpamAssassin->new({
        local_tests_only => 1,
        dont_copy_prefs => 1,
        userprefs_filename => "$home/none",
        userstate_dir => $home,
        home_dir_for_helpers => $home,
        post_config_text => "use_bayes $bayes\nuse_learner $bayes\nbayes_path $home/bayes\nbayes_auto_learn 0\n"
            . "bayes_auto_expire 0\nbayes_learn_to_journal 0\nuse_auto_whitelist 0\nuse_txrep 0\n"
            . "lock_method flock\n",
    });
    $filter->init(1);
    $filter->init_learner({ expire => 0, learn_to_journal => 0, wait_for_lock => 1 }) if $bayes;
    return $filter;
}

my %filters;
local $| = 1;
while (my $line = <STDIN>) {
    chomp $line;
    my ($order, $file) = split /\t/, $line, 2;
    my $filter = $filters{$order eq "rules" ? 0 : 1} //= filter($order eq "rules" ? 0 : 1);
    open my $handle, "<:raw", $file or die "$file: $!";
    my $raw = do { local $/; <$handle> };
    close $handle;
    my $mail = $filter->parse($raw, 0);
    if ($order eq "rules") {
        my $status = $filter->check($mail);
        my ($plain, $points) = (0, 0);
        for my $rule (split /,/, $status->get_names_of_tests_hit()) {
            $plain += $filter->{conf}{scoreset}[$without]{$rule} // 0;
            $points += $filter->{conf}{scoreset}[$beside]{$rule} // 0;
        }
        print "$plain $points\n";
        $status->finish();
    } elsif ($order eq "bayes") {
        my $status = Mail::SpamAssassin::PerMsgStatus->new($filter, $mail);
        my $said = $filter->call_plugins("learner_get_implementation")->scan($status, $mail) // 0.5;
        my $points = 0;
        for my $rule (keys %range) {
            my ($low, $high) = @{ $range{$rule} };
            $points += $filter->{conf}{scoreset}[$beside]{$rule} // 0 if $said >= $low && $said < $high;
        }
        print "$said $points\n";
        $status->finish();
    } else {
        my $learnt = $filter->learn($mail, undef, $order eq "spam" ? 1 : 0, $order eq "forget" ? 1 : 0);
        print $learnt->did_learn() ? "1\n" : "0\n";
        $learnt->finish();
    }
    $mail->finish();
}
if (my $filter = $filters{1}) { $filter->finish_learner(); }
$_->finish() for values %filters;
