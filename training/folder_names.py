"""What the name of a mail folder says of the mail in it: spam, ham, sent, or nothing; in the languages of clients."""

from __future__ import annotations

import base64
import binascii
import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum

from spamguard.config import Config


class Kind(StrEnum):
    """What the mail in a folder is; of `IGNORED` folders nothing is known."""

    SPAM = "spam"
    HAM = "ham"
    SENT = "sent"
    IGNORED = "ignored"


# As Gmail, Outlook, Thunderbird, Apple Mail, Dovecot, web.de and others call them.
_USUAL = {
    Kind.HAM: "ham|nonspam|not spam",
    Kind.SPAM: """
        spam|junk|junk e-mail|junk email|junk mail|junk-e-mail|bulk|bulk mail
        spamverdacht|unerwünscht|unerwünschte werbung
        indésirables|courrier indésirable|courriers indésirables|messages indésirables|pourriel|pourriels
        correo no deseado|no deseado|correo basura|posta indesiderata|indesiderata|posta spazzatura
        lixo eletrônico|lixo electrónico|lixo eletrónico|correio eletrônico não solicitado
        ongewenst|ongewenste e-mail|ongewenste post|ongewenste reclame
        niechciane|wiadomości-śmieci|wiadomości śmieci|nevyžádané|nevyžádaná pošta|спам|нежелательная почта
        skräppost|uønsket mail|uønsket e-mail|uønsket post|uønsket e-post|søppelpost|roskaposti
        gereksiz|gereksiz e-posta|istenmeyen|istenmeyen e-posta|önemsiz|önemsiz e-posta
        迷惑メール|スパム|垃圾邮件|垃圾郵件|垃圾信件""",
    Kind.SENT: """
        sent|sent items|sent messages|sent mail|sent-mail|gesendet|gesendete|gesendete elemente|gesendete objekte
        envoyés|envoyé|éléments envoyés|messages envoyés|enviados|enviadas|elementos enviados|mensajes enviados
        itens enviados|mensagens enviadas|inviata|inviati|posta inviata|verzonden|verzonden items|verzonden berichten
        wysłane|elementy wysłane|odeslané|odeslaná pošta|отправленные|skickat|skickade|skickade objekt
        sendt|sendt post|sendte elementer|lähetetyt|lähetetyt viestit|gönderilmiş|gönderilmiş öğeler|gönderilenler
        送信済み|送信済みアイテム|送信済みメール|已发送|已发送邮件|已傳送|寄件備份""",
    Kind.IGNORED: """
        trash|bin|wastebasket|deleted|deleted items|deleted messages|draft|drafts|outbox|templates
        papierkorb|gelöscht|gelöschte elemente|gelöschte objekte|entwürfe|postausgang|vorlagen
        corbeille|éléments supprimés|messages supprimés|brouillons|boîte d'envoi|modèles
        papelera|eliminados|elementos eliminados|borrador|borradores|bandeja de salida|plantillas
        cestino|eliminata|posta eliminata|bozze|posta in uscita|modelli
        lixeira|lixo|itens excluídos|itens eliminados|rascunhos|caixa de saída|modelos
        prullenbak|prullenmand|verwijderd|verwijderde items|concepten|postvak uit|sjablonen
        kosz|usunięte|elementy usunięte|szkice|robocze|kopie robocze|wersje robocze|skrzynka nadawcza|szablony
        koš|odstraněné|odstraněná pošta|koncepty|rozepsané|k odeslání|pošta k odeslání|šablony
        корзина|удаленные|удалённые|черновики|исходящие|шаблоны
        papperskorg|papperskorgen|borttaget|borttagna objekt|utkast|utkorg|utkorgen|mallar
        papirkurv|slettet|slettet post|slettede elementer|kladde|kladder|kladd|udkast|udbakke|utboks|skabeloner|maler
        roskakori|poistetut|poistetut viestit|luonnokset|lähtevät|mallit
        çöp|çöp kutusu|silinmiş öğeler|silinenler|taslaklar|giden kutusu|şablonlar
        ゴミ箱|ごみ箱|削除済みアイテム|下書き|送信トレイ|テンプレート
        已删除|已删除邮件|已刪除郵件|废件箱|垃圾桶|草稿|草稿箱|草稿匣|发件箱|寄件匣|模板|範本""",
}
_SHIFTED = re.compile(r"&([A-Za-z0-9+,]*)-")


def decoded(name: str) -> str:
    """A folder's name on the disk as the user sees it: modified UTF-7 read (RFC 3501 section 5.1.3).

    What is no such text stays as it is.
    """

    def read(found: re.Match[str]) -> str:
        digits = found[1].replace(",", "/")
        if not digits:
            return "&"
        try:
            return base64.b64decode(digits + "=" * (-len(digits) % 4), validate=True).decode("utf-16-be")
        except (binascii.Error, UnicodeDecodeError):
            return found[0]

    return _SHIFTED.sub(read, name)


def _plain(name: str) -> str:
    """Case and ways to write accents folded away; also for a Turkish capital İ."""
    folded = unicodedata.normalize("NFC", decoded(name)).casefold().replace("i\N{COMBINING DOT ABOVE}", "i")
    return " ".join(folded.split())


def _path(name: str) -> str:
    """A name of the configuration as a path of folders: `.INBOX.Werbung`, `INBOX/Werbung` and `Werbung` are one."""
    return _plain(name).replace("/", ".").strip(".").removeprefix("inbox.")


def _usual() -> dict[str, Kind]:
    return {
        _plain(name): kind for kind, names in _USUAL.items() for line in names.split("\n") for name in line.split("|")
    }


@dataclass(frozen=True, slots=True)
class Kinds:
    """The kind of each folder, by its name; names of the configuration come before the usual ones."""

    by_name: Mapping[str, Kind] = field(default_factory=_usual)

    @classmethod
    def configured(cls, config: Config) -> Kinds:
        """With the folders that `learning`, `watch` and `maildir` name."""
        learning, watch = config.learning, config.watch
        named: list[tuple[Kind, Iterable[str]]] = [
            (Kind.SPAM, filter(None, (watch.junk, config.maildir.junk))),
            (Kind.IGNORED, watch.trash),
            (Kind.SPAM, learning.spam_folders),
            (Kind.HAM, learning.ham_folders),
            (Kind.SENT, learning.sent_folders),
            (Kind.IGNORED, learning.ignored_folders),
        ]
        return cls(_usual() | {_path(name): kind for kind, names in named for name in names})

    def of(self, path: Sequence[str]) -> Kind | None:
        """The kind of the folder at this path, as ("INBOX", "Lists", "Junk"); None: a folder like any other.

        A folder without a kind has that of the one it lies in, and what lies in an ignored one is ignored.
        """
        parts = [_plain(part) for part in path]
        if parts[:1] == ["inbox"]:
            parts = parts[1:]
        found: Kind | None = None
        for end, part in enumerate(parts, 1):
            found = self.by_name.get(".".join(parts[:end])) or self.by_name.get(part) or found
            if found is Kind.IGNORED:
                break
        return found
