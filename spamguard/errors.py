"""The errors that cross module borders; each message is one line fit to be shown to a user."""

# Exit status of a retrain whose head the gate did not let into service; 1 and 3 are verdicts of `score`.
REFUSED = 4


class SpamguardError(Exception):
    """Base of all errors that spamguard raises on purpose."""


class ConfigError(SpamguardError):
    """The configuration is wrong; the message names the file and the key."""


class EncoderError(SpamguardError):
    """The encoder's folder is missing, altered, or of a kind we do not load."""


class BundleError(SpamguardError):
    """A head on disk is missing, damaged, or was fitted for another encoder."""


class OutdatedHeadError(BundleError):
    """A head was fitted by a version of spamguard that read mail otherwise."""


class CorpusError(SpamguardError):
    """Labelled mail cannot be read, or cannot be learnt from."""


class ReportError(SpamguardError):
    """The page of a retrain cannot be written, drawn or found; the retrain itself is done."""


class BusyError(SpamguardError):
    """Another process is at it already."""


class ScoringError(SpamguardError):
    """No verdict could be reached (fault, overload or deadline); the mail itself is not to blame."""


class QuarantineError(SpamguardError):
    """There is no such message in the quarantine, or it is damaged."""


class DeliveryError(SpamguardError):
    """The next hop did not take a message.

    `reply` is the SMTP reply owed to the client; it is 4xx unless the next hop itself answered 5xx.
    """

    def __init__(self, cause: str, reply: bytes = b"451 4.3.0 Delivery failed, try again later") -> None:
        super().__init__(cause)
        self.reply = reply

    @property
    def temporary(self) -> bool:
        return not self.reply.startswith(b"5")
