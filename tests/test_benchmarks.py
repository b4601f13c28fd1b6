"""The benchmarks' own machinery: what they compare is equal, what they count is right, what they say can be read."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import __main__ as cli
from benchmarks import table
from benchmarks.backbone import bfloat16_overheads, calculated, heavy_calls, pass_peaks
from benchmarks.catalogue import PARTS, TARGETS, row
from benchmarks.harness import Pairs, Row, paired, quartiles
from benchmarks.memory import peak_tensor_bytes
from benchmarks.official import Costs, Ledger, OfficialPass
from benchmarks.operators import OperatorClock, Unreckoned, replay
from benchmarks.subject import TOLERANCE, Inputs, largest_error, make_inputs, make_model
from nava_core.models.transformer_nava import NavaTransformer3DModel

TINY: dict[str, Any] = {
    "num_attention_heads": 4,
    "attention_head_dim": 24,
    "ffn_dim": 160,
    "text_dim": 32,
    "text_len": 16,
    "num_layers": 2,
    "num_single_layers": 2,
}
SIZES = ((3, 8, 8), 7)
SWITCHES = [
    Costs(),
    Costs.none(),
    *(Costs().but(name, False) for name in Costs.names()),
    *(Costs.none().but(name, True) for name in Costs.names()),
]


def tiny(dtype: torch.dtype = torch.float32, **config: Any) -> tuple[NavaTransformer3DModel, Inputs]:
    model = make_model(dtype, **TINY, **config)
    return model, make_inputs(model, *SIZES)


# The official structure


@pytest.mark.parametrize("split_ffn", [False, True])
@pytest.mark.parametrize("costs", SWITCHES, ids=str)
@torch.no_grad()
def test_with_any_switches_the_official_structure_gives_our_output(costs: Costs, split_ffn: bool) -> None:
    model, inputs = tiny(split_ffn=split_ffn)
    official, expected = OfficialPass(model, costs), inputs.ours(model)
    assert largest_error(official(inputs), expected) < 2e-6
    assert largest_error(official(inputs), expected) < 2e-6  # with whatever it has kept


@pytest.mark.parametrize("costs", [Costs(), Costs.none()], ids=["on", "off"])
@torch.no_grad()
def test_every_kind_of_pass_is_the_same(costs: Costs) -> None:
    model, inputs = tiny()
    official = OfficialPass(model, costs)
    assert largest_error(official(inputs, isolated=True), inputs.ours(model, isolated=True)) < 2e-6
    for video, audio in ((None, 7), ((3, 8, 8), 0)):
        alone = make_inputs(model, video, audio)
        assert largest_error(OfficialPass(model, costs)(alone), alone.ours(model)) < 2e-6
    clean = model(inputs.video, inputs.audio, inputs.timestep, inputs.text, first_frame_is_clean=True)
    actual = OfficialPass(model, costs)(inputs, first_frame_is_clean=True)
    assert largest_error(actual, (clean.sample, clean.audio_sample)) < 2e-6
    speakers = torch.stack([torch.randn(192), torch.zeros(192)])
    spoken = model(
        inputs.video,
        inputs.audio,
        inputs.timestep,
        inputs.text,
        speaker_embeds=speakers[None],
        speaker_positions=[[2, 5]],
    )
    actual = OfficialPass(model, costs)(inputs, speakers=(speakers, (2, 5)))
    assert largest_error(actual, (spoken.sample, spoken.audio_sample)) < 2e-6
    assert largest_error(actual, inputs.ours(model)) > 1e-4  # and the speakers were heard


@torch.no_grad()
def test_in_bfloat16_it_differs_by_rounding_alone() -> None:
    model, inputs = tiny(torch.bfloat16)
    expected = inputs.ours(model)
    for costs in (Costs(), Costs.none()):
        official = OfficialPass(model, costs)
        assert official.weights["head.head.weight"].dtype == (torch.float32 if costs.recast else torch.bfloat16)
        assert largest_error(official(inputs), expected) < TOLERANCE[torch.bfloat16]


@torch.no_grad()
def test_another_models_output_is_not_taken_for_the_same() -> None:
    model, inputs = tiny()
    expected = inputs.ours(model)
    official = OfficialPass(model)
    official.weights["transformer_blocks.3.ffn.2.bias"] = official.weights["transformer_blocks.3.ffn.2.bias"] + 0.1
    assert largest_error(official(inputs), expected) > TOLERANCE[torch.float32]


@torch.no_grad()
def test_every_cost_has_an_entry_of_its_own() -> None:
    model, inputs = tiny(torch.bfloat16)
    official = OfficialPass(model)
    started = time.process_time()
    official(inputs)
    spent = time.process_time() - started
    assert set(official.ledger.seconds) == set(Costs.names())
    assert all(seconds > 0 for seconds in official.ledger.seconds.values())
    assert sum(official.ledger.seconds.values()) < spent


def test_an_entry_inside_another_is_not_counted_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    now = iter(range(100))
    monkeypatch.setattr(time, "process_time", lambda: next(now))
    ledger = Ledger()
    with ledger.entry("outer"), ledger.entry("inner"):
        pass
    assert dict(ledger.seconds) == {"outer": 2, "inner": 1}


# What is counted


@torch.no_grad()
def test_heavy_operators_are_found_on_shapes_alone_and_run_bare() -> None:
    model, inputs = tiny()
    context = model.encode_context(inputs.text)
    inputs.ours(model, context)
    with OperatorClock() as clock:
        inputs.ours(model, context)
    calls = heavy_calls(model, inputs)
    assert calls == clock.calls
    assert clock.seconds > 0
    with FlopCounterMode(display=False) as counter:
        replay(calls)()
    attention = sum(call.flops for call in calls if call.function is torch.nn.functional.scaled_dot_product_attention)
    counted = sum(call.flops for call in calls)
    # torch's own counter knows no attention on a CPU in some versions
    assert counter.get_total_flops() in (pytest.approx(counted), pytest.approx(counted - attention))


@torch.no_grad()
def test_what_is_not_computed_is_allocated_all_the_same() -> None:
    model, inputs = tiny()
    inputs.ours(model)
    computed = peak_tensor_bytes(lambda: inputs.ours(model))
    with Unreckoned():
        expected = inputs.ours(model)
        allocated = peak_tensor_bytes(lambda: inputs.ours(model))
    assert [x.shape for x in expected if x is not None] == [x.shape for x in inputs.ours(model) if x is not None]
    assert allocated == pytest.approx(computed, rel=0.05)
    official, ours = pass_peaks(torch.bfloat16, **TINY)
    assert official > ours > 0


@torch.no_grad()
def test_a_ratio_is_calculated_from_overheads_in_bfloat16() -> None:
    overheads = bfloat16_overheads(**TINY)
    slow, fast = overheads["seconds"]
    assert slow > fast > 0
    assert set(overheads["of_each_switch"]) == set(Costs.names())
    assert calculated([2e12, 1e12], [2.0, 1.0]) == 2.0
    assert calculated([2e12, 1e12], [4.0, 1.0]) == 3.0


def test_a_peak_is_the_most_at_one_time() -> None:
    def work() -> None:
        for _ in range(3):
            large = torch.empty(1 << 20)
            del large
        pair = torch.empty(1 << 20), torch.empty(1 << 19)
        del pair

    assert peak_tensor_bytes(work) == 4 * ((1 << 20) + (1 << 19))


# Pairs


def test_pairs_are_run_in_turn_until_the_budget_is_spent() -> None:
    order: list[str] = []
    now = [0.0]

    def spend(name: str) -> None:
        order.append(name)
        now[0] += 2.0

    pairs = paired(
        lambda: spend("a"),
        lambda: spend("b"),
        budget=13.0,
        cost=lambda action: [action(), float(len(order))][1],
        clock=lambda: now[0],
    )
    assert order == ["a", "b"] * 3  # 12 seconds; a fourth pair would end at 16
    assert pairs.ratios == [1 / 2, 3 / 4, 5 / 6]
    assert pairs.ratio == 3 / 4
    assert pairs.spread == (5 / 8, (3 / 4 + 5 / 6) / 2)


def test_a_spread_needs_two_pairs_whatever_the_budget() -> None:
    assert len(paired(lambda: None, lambda: None, budget=0.0, cost=lambda action: 1.0).first) == 2
    assert len(paired(lambda: None, lambda: None, budget=1e9, at_most=4, cost=lambda action: 1.0).first) == 4


def test_the_median_of_ratios_is_not_the_ratio_of_medians() -> None:
    # The machine was three times slower during the second pair: its ratio is as good as the others'.
    pairs = Pairs([2.0, 6.0, 2.1], [1.0, 3.0, 1.0])
    assert pairs.ratio == 2.0
    assert quartiles([5.0]) == (5.0, 5.0)


# Rows


@pytest.mark.parametrize(
    ("value", "sense", "holds", "ok"),
    [
        (1.5, "at_least", True, True),
        (1.49, "at_least", True, False),
        (1.5, "at_most", True, True),
        (1.51, "at_most", True, False),
        (1.5, "at_least", False, False),
        (None, "at_least", True, False),
    ],
)
def test_a_row_is_met_by_its_value_and_by_what_must_hold(value: Any, sense: Any, holds: bool, ok: bool) -> None:
    one = Row("pass", value, 1.5, sense, None, {}, holds)
    assert one.ok is ok
    assert one.as_json()[sense] == 1.5


def test_rows_have_the_promised_names() -> None:
    assert {name.partition(".")[0] for name in TARGETS} == set(PARTS)
    assert len(PARTS) == 12
    for name, (sense, limit) in TARGETS.items():
        values = json.loads(json.dumps(row(name, 1.0, {"summary": "x"}).as_json()))
        assert list(values) == ["name", "value", "limit", sense, "ok", "spread", "detail"]
        assert (values["limit"], values["spread"]) == (limit, [1.0, 1.0])
    for part in PARTS.values():
        assert callable(part.load())


# The command


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["pase"], ["'pase'", *PARTS]),
        (["pass", "nothing", "else"], ["'nothing', 'else'"]),
        (["load", "--budget", "0"], ["--budget is 0"]),
        (["load", "--json", "/no/such/folder/rows.json"], ["/no/such/folder", "rows.json"]),
    ],
)
def test_what_makes_no_sense_is_refused(
    arguments: list[str], said: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as error:
        cli.main(arguments)
    assert error.value.code == 2
    message = capsys.readouterr().err
    assert all(text in message for text in said)


def test_a_part_runs_by_itself(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "rows.json"
    assert cli.main(["offload", "--json", str(path)]) == 0
    (only,) = json.loads(path.read_text())
    assert (only["name"], only["value"], only["at_most"], only["ok"]) == ("offload", 1.0, 1.0, True)
    assert only["detail"]["machine"]["threads"] == 1
    assert "offload" in capsys.readouterr().out


def test_a_part_that_fails_is_a_row_that_says_so(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # The child's first import of torch finds this one; where the package is installed, a folder without it is no fault.
    (tmp_path / "torch.py").write_text("raise ImportError('no torch here')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    assert cli.main(["load"]) == 1
    output = capsys.readouterr()
    assert "failed: ImportError: no torch here" in output.out
    assert "Traceback" in output.err


def test_rows_become_a_table_in_a_document(tmp_path: Path) -> None:
    machine = {"cpu": "A", "instructions": "avx2", "cores": 2, "dtype": "float32", "torch": "2"}
    met = row("pass", 1.61, {"summary": "why | how", "machine": machine}, (1.6, 1.7))
    missed = row("ulysses.exchanges", 4.0, {"summary": "counted", "machine": machine})
    failed = row("load", None, {"summary": "failed: x"})
    rows, document = tmp_path / "rows.json", tmp_path / "doc.md"
    rows.write_text(json.dumps([one.as_json() for one in (met, missed, failed)]))
    document.write_text(f"before\n{table.BEGIN}\nold\n{table.END}\nafter\n")
    for _ in range(2):
        table.main([str(rows), "--into", str(document)])
    text = document.read_text()
    assert (
        "| `pass` | official structure / ours, one pass | **1.610** | 1.600 to 1.700 | ≥ 1.5 | yes | why / how |"
        in text
    )
    assert ": exchanges | **4.000** |  | ≤ 2 | **no** | counted |" in text
    assert "| **none** |" in text
    assert text.count("Measured on: A (avx2)") == 1
    table.main([str(rows), "--brief", "--into", str(document)])
    assert "why" not in document.read_text() and "**1.610**" in document.read_text()
    assert "old" not in text
    assert (text.startswith("before\n"), text.endswith("after\n")) == (True, True)


def test_a_document_without_a_place_is_left_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows, document = tmp_path / "rows.json", tmp_path / "doc.md"
    rows.write_text("[]")
    document.write_text("text\n")
    with pytest.raises(SystemExit):
        table.main([str(rows), "--into", str(document)])
    assert document.read_text() == "text\n"
    assert "no place for the table" in capsys.readouterr().err
