"""What folders' names say, as clients of many languages write them, on the disk and in the configuration."""

from __future__ import annotations

import base64
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from spamguard.config import Config
from training.folder_names import Kind, Kinds, decoded


def on_disk(name: str) -> str:
    """Modified UTF-7, by the letter of RFC 3501 section 5.1.3."""
    out, shifted = "", ""
    for letter in [*name, ""]:
        if letter and not " " <= letter <= "~":
            shifted += letter
            continue
        if shifted:
            digits = base64.b64encode(shifted.encode("utf-16-be")).decode().rstrip("=").replace("/", ",")
            out, shifted = f"{out}&{digits}-", ""
        out += "&-" if letter == "&" else letter
    return out


NAMES = {
    Kind.SPAM: [
        "Junk", "SPAM", "Junk E-mail", "Bulk Mail", "Spamverdacht", "Courrier indésirable", "Indésirables",
        "Correo no deseado", "Posta indesiderata", "Lixo Eletrônico", "Ongewenste e-mail", "Wiadomości-śmieci",
        "Nevyžádaná pošta", "Спам", "Нежелательная почта", "Skräppost", "Uønsket mail", "Søppelpost", "Roskaposti",
        "İstenmeyen", "Önemsiz E-posta", "迷惑メール", "垃圾邮件", "垃圾郵件",
    ],
    Kind.IGNORED: [
        "Trash", "Deleted Items", "Drafts", "Outbox", "Templates", "Papierkorb", "Gelöschte Elemente", "Entwürfe",
        "Postausgang", "Vorlagen", "Corbeille", "Brouillons", "Éléments supprimés", "Papelera", "Borradores",
        "Cestino", "Bozze", "Lixeira", "Rascunhos", "Prullenbak", "Concepten", "Kosz", "Szkice", "Koš", "Koncepty",
        "Корзина", "Черновики", "Papperskorgen", "Utkast", "Papirkurv", "Kladder", "Roskakori", "Luonnokset",
        "Çöp Kutusu", "Taslaklar", "ゴミ箱", "下書き", "已删除邮件", "草稿箱",
    ],
    Kind.SENT: [
        "Sent", "Sent Items", "Sent Mail", "Gesendet", "Gesendete Elemente", "Éléments envoyés", "Enviados",
        "Posta inviata", "Itens Enviados", "Verzonden items", "Elementy wysłane", "Odeslaná pošta", "Отправленные",
        "Skickat", "Sendt post", "Lähetetyt", "Gönderilmiş Öğeler", "送信済みアイテム", "已发送",
    ],
    Kind.HAM: ["ham", "Not Spam"],
    None: ["INBOX", "Work", "Archiv", "spam.example.org", "Spam reports", "Freunde", "Lists"],
}  # fmt: skip
CASES = [(name, kind) for kind, names in NAMES.items() for name in names]


@pytest.mark.parametrize(("name", "kind"), CASES)
def test_usual_names(name: str, kind: Kind | None) -> None:
    for written in {name, name.upper(), name.lower(), on_disk(name)}:
        assert Kinds().of((written,)) is kind
        assert Kinds().of(("INBOX", written)) is kind
        assert Kinds().of(("Work", written)) is kind


@given(st.text(st.characters(blacklist_categories=["Cs"])))
def test_names_on_the_disk_are_read(name: str) -> None:
    assert decoded(on_disk(name)) == name


@pytest.mark.parametrize("name", ["R&D", "&", "&x", "&!-", "&AA-", "&2AA-", "a&-b", "&AOk", "&-&-", "&////-"])
def test_what_is_no_such_name_stays(name: str) -> None:
    assert decoded(name) == name.replace("&-", "&")


def test_folders_below_have_the_kind_of_the_nearest_above() -> None:
    of = Kinds().of
    assert of(("Junk", "2024")) is of(("Junk", "2024", "May")) is Kind.SPAM
    assert of(("Sent", "Work")) is Kind.SENT
    assert of(("Sent", "Junk")) is Kind.SPAM and of(("Junk", "ham")) is Kind.HAM
    assert of(("Trash", "Junk")) is Kind.IGNORED  # somebody has thrown his folder away
    assert of(()) is of(("INBOX",)) is None


def kinds(**learning: Any) -> Kinds:
    tables = {name: learning.pop(name) for name in ("watch", "maildir") if name in learning}
    return Kinds.configured(Config.model_validate({"learning": learning, **tables}))


@pytest.mark.parametrize("name", ["Werbung", ".Werbung", "INBOX/Werbung", ".INBOX.Werbung", "WERBUNG"])
def test_the_configuration_names_more(name: str) -> None:
    assert kinds(spam_folders=[name]).of(("Werbung",)) is Kind.SPAM
    assert kinds(ignored_folders=[name]).of(("INBOX", "Werbung", "2024")) is Kind.IGNORED
    assert kinds(sent_folders=[name]).of(("Werbung",)) is Kind.SENT
    assert kinds(ham_folders=[name]).of(("Werbung",)) is Kind.HAM
    assert kinds(spam_folders=[name]).of(("Junk",)) is Kind.SPAM


def test_the_configuration_beats_the_usual_meaning() -> None:
    found = kinds(ham_folders=["Bulk"], spam_folders=["Lists/Lixo"], ignored_folders=["Entw&APw-rfe", "Archive"])
    assert found.of(("Bulk",)) is Kind.HAM
    assert found.of(("Lists", "Lixo")) is Kind.SPAM and found.of(("Lixo",)) is Kind.IGNORED
    assert found.of(("Archive", "2020")) is Kind.IGNORED and found.of(("Entwürfe",)) is Kind.IGNORED


def test_folders_that_other_tables_name_count() -> None:
    found = kinds(watch={"junk": ".INBOX.Werbung", "trash": [".Weg"]}, maildir={"junk": ".Reklame"})
    assert found.of(("INBOX", "Werbung")) is found.of(("Reklame",)) is Kind.SPAM
    assert found.of(("Weg",)) is Kind.IGNORED and found.of(("Junk",)) is Kind.SPAM


@pytest.mark.parametrize(
    "learning",
    [{"spam_folders": ["A", "A"]}, {"spam_folders": ["A"], "ham_folders": ["A"]}, {"sent_folders": [""]},
     {"ignored_folders": ["./"]}],
)  # fmt: skip
def test_a_folder_named_twice_or_not_at_all_is_an_error(learning: dict[str, list[str]]) -> None:
    with pytest.raises(ValidationError, match="named twice or ''"):
        kinds(**learning)
