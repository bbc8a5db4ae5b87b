"""Networks, plan and report appear together, the report last; whatever ends the command before leaves nothing."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch

from compressor import networks
from compressor.exporters.delivery import Written, deliver
from compressor.system import files

NAMES = ("small.onnx", "small.safetensors", "plan.json", "report.json")


def delivered(folder: Path, **more: object) -> dict:
    model, x = networks.build("lenet300100", image_size=8).eval(), (torch.randn(4, 1, 8, 8),)

    def document(written: Written) -> dict:
        return {"proofs": len(written.proofs), "sizes": sorted(path.name for path in written.sizes)}

    texts = {folder / "plan.json": lambda _: "{}", folder / "report.json": json.dumps}
    return deliver(model, [folder / name for name in NAMES[:2]], texts, document, x, **more)


def test_the_report_is_the_last_to_appear(tmp_path: Path, monkeypatch) -> None:
    appeared, real = [], os.replace

    def replace(source: Path, target: Path) -> None:
        assert all((tmp_path / name).exists() for name in appeared)
        real(source, target)
        appeared.append(Path(target).name)

    monkeypatch.setattr(files.os, "replace", replace)
    told = delivered(tmp_path)
    assert tuple(appeared) == NAMES
    assert (
        json.loads((tmp_path / "report.json").read_text())
        == told
        == {"proofs": 2, "sizes": ["small.onnx", "small.safetensors"]}
    )


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_a_report_that_cannot_be_made_leaves_nothing(error: type[BaseException], tmp_path: Path) -> None:
    for name in NAMES:
        (tmp_path / name).write_text("old")

    def document(_: Written) -> dict:
        raise error

    with pytest.raises(error):
        deliver(
            networks.build("lenet300100", image_size=8).eval(), [tmp_path / name for name in NAMES[:2]],
            {tmp_path / name: str for name in NAMES[2:]}, document, (torch.randn(4, 1, 8, 8),),
        )  # fmt: skip
    assert {p.name: p.read_text() for p in tmp_path.iterdir()} == dict.fromkeys(NAMES, "old")
