"""Which head judges where the retrained one cannot: mail flows, judged by the one that ships, and the log says so."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from spamguard import bundle, heads_dir
from spamguard.config import Config
from spamguard.errors import BundleError, OutdatedHeadError
from spamguard.scorer import Scorer
from tests.random_head import random_head
from tests.unit.conftest import Tiny


@pytest.fixture
def config(tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Config:
    """Tiny's head in the place of the shipped one, and a retrained one in service."""
    monkeypatch.setattr(bundle, "SHIPPED", tiny.head)
    made = tiny.config(tmp_path / "state")
    retrained = bundle.make(
        random_head("mlp", dim=tiny.encoder.dim, columns=0, structure=0), tiny.bundle().cutoffs, tiny.encoder, {}
    )
    bundle.save(retrained, made.heads_dir / retrained.id)
    heads_dir.promote(made.heads_dir, retrained.id)
    return made


def current(config: Config) -> Path:
    return bundle.in_service(config.heads_dir)


def outdate(folder: Path) -> None:
    """As if the next version of spamguard looked at it."""
    file = folder / bundle.MANIFEST
    manifest = json.loads(file.read_text())
    manifest["inputs"]["text"] = "of old"
    file.write_text(json.dumps(manifest))


def damage(folder: Path) -> None:
    (folder / bundle.WEIGHTS).write_bytes(b"")


def test_the_retrained_head_judges(config: Config, tiny: Tiny, caplog: pytest.LogCaptureFixture) -> None:
    assert Scorer.from_config(config).head_id == current(config).name != tiny.bundle().id
    assert not caplog.records


@pytest.mark.parametrize("harm", [outdate, damage])
def test_mail_does_not_wait_for_a_head_that_cannot_be_used(
    config: Config, tiny: Tiny, caplog: pytest.LogCaptureFixture, harm: object
) -> None:
    assert callable(harm)
    harm(current(config))
    assert Scorer.from_config(config).head_id == tiny.bundle().id
    (record,) = caplog.records
    line = record.getMessage()
    assert record.levelname == "WARNING" and str(current(config)) in line and "the head that ships judges" in line


def test_at_a_reload_the_head_that_runs_is_better_than_the_shipped_one(config: Config, tiny: Tiny) -> None:
    damage(current(config))
    with pytest.raises(BundleError, match="damaged"):
        Scorer.from_config(config, tiny.encoder)


def test_but_an_outdated_one_does_not_run(config: Config, tiny: Tiny) -> None:
    outdate(current(config))
    assert Scorer.from_config(config, tiny.encoder).head_id == tiny.bundle().id


def test_a_head_that_the_configuration_names_is_that_or_none(config: Config, tiny: Tiny) -> None:
    outdate(current(config))
    table = config.head.model_copy(update={"path": current(config)})
    with pytest.raises(OutdatedHeadError):
        Scorer.from_config(config.model_copy(update={"head": table}))


def test_what_is_wrong_with_his_own_head_is_said_where_the_shipped_one_does_not_fit(
    config: Config, tiny: Tiny, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    outdate(current(config))
    monkeypatch.setattr(bundle, "SHIPPED", tmp_path / "none")
    with pytest.raises(OutdatedHeadError, match=str(current(config))):
        Scorer.from_config(config)
