"""The report: whole in itself, true to the folders, and safe with whatever a model wrote."""

import base64
import io
import json
import re
import shutil
import subprocess
from html.parser import HTMLParser

import pytest
import soundfile
from PIL import Image

from echoink.common.errors import UserError
from echoink.report import arms as report_arms
from echoink.report import case_studies, figures
from echoink.report.__main__ import main
from echoink.report.build import question, try_to_write, write
from echoink.run_folder import reader
from tests.helpers.runs import make_run

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")


RUNS = [(0.001, 0, 0.8), (0.001, 1, 0.82), (0.04, 0, 0.6), (0.04, 1, 0.61)]
"""β, seed, final accuracy."""


class Page(HTMLParser):
    """Tags with their attributes, and the text."""

    def __init__(self, html):
        super().__init__()
        self.tags, self.words = [], []
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.words.append(data)

    def of(self, name):
        return [attributes for tag, attributes in self.tags if tag == name]


@pytest.fixture(scope="module")
def page(tmp_path_factory, dataset):
    """The report of a sweep: the folder, its HTML and its Markdown."""
    tmp_path = tmp_path_factory.mktemp("sweep")
    for number, (beta, seed, accuracy) in enumerate(RUNS):
        make_run(tmp_path / str(number), [f"grpo.beta={beta}", f"seed={seed}"], accuracy, dataset=dataset)
    definition = {
        "name": "beta",
        "question": "What does β do?",
        "command": ["-m", "echoink.train", "--multirun", "grpo.beta=0.001,0.04"],
    }
    (tmp_path / "sweep.json").write_text(json.dumps(definition))
    return (tmp_path, *write([tmp_path], tmp_path))


@pytest.fixture(autouse=True)
def drawn(request, monkeypatch):
    """Curves are drawn for `page` alone: a drawing takes longer than all else of a report."""
    if "page" not in request.fixturenames:
        for draw in ("curves", "overlay"):
            monkeypatch.setattr(figures, draw, lambda *_: None)


def test_a_report_names_settings_that_are_lists_and_says_which_draws_a_gain_is_of(tmp_path):
    run = make_run(tmp_path / "run", ["dataset.kinds=[ear]", "resume_allow=[trainer.steps]"])
    summary = json.loads((run / "summary.json").read_text())
    summary["paired"]["draws"] = 4
    (run / "summary.json").write_text(json.dumps(summary))
    write([run], run)
    text = (run / "report.md").read_text()
    (line,) = (line for line in text.splitlines() if line.startswith("- `dataset.kinds`"))
    assert "ear" in line and "- `resume_allow`" not in text
    assert "+40.0 points (means of 4 draws; the table has the first)" in text
    assert "means of 4 draws" in (run / "report.html").read_text()


def test_every_sense_that_any_run_was_asked_without_has_a_column(tmp_path):
    def ablated(name):
        drop = {"difference": 0.1, "interval": [0.0, 0.2], "p_value": 0.5}
        return {name: {"accuracy": 0.5, "chance": 0.25, "drop": drop, "n": 100, "parse_failures": 0.0}}

    for number, name in enumerate(("no_audio", "no_image")):
        run = make_run(tmp_path / str(number), [f"grpo.beta={number}"])
        summary = json.loads((run / "summary.json").read_text())
        summary["final"] |= {"ablations": ablated(name), "chance": 0.25}
        (run / "summary.json").write_text(json.dumps(summary))
    names, rows = case_studies.matrix(report_arms.arms(reader.find([tmp_path])))
    assert names == ["full", "no_audio", "no_image", "a guess"]
    assert [[cell is None for cell in cells] for _, cells in rows] == [
        [False, False, True, False],
        [False, True, False, False],
    ]


def test_a_page_is_whole_in_itself_and_plays(page):
    sweep, html, markdown = page
    shown = Page(html.read_text())
    sources = [attributes["src"] for tag in ("img", "audio") for attributes in shown.of(tag)]
    assert sources and all(source.startswith("data:") for source in sources)
    assert not shown.of("link") and not [a for a in shown.of("script") if "src" in a]
    sound = base64.b64decode(shown.of("audio")[0]["src"].partition(",")[2])
    samples, rate = soundfile.read(io.BytesIO(sound))
    assert rate == 16_000 and len(samples) > 8_000
    picture = next(source for source in sources if source.startswith("data:image/jpeg"))
    assert Image.open(io.BytesIO(base64.b64decode(picture.partition(",")[2]))).size[0] > 40
    assert (sweep / "figures/curves.png").is_file() and "figures/curves.png" in markdown.read_text()


def test_model_output_is_text(page):
    _, html, markdown = page
    shown = Page(html.read_text())
    assert len(shown.of("script")) == 1 and not shown.of("b"), "only the page's own script, no markup from a question"
    assert "alert(1)" in "".join(shown.words), "shown, not run"
    assert "default-src 'none'" in html.read_text()
    fences = [line for line in markdown.read_text().splitlines() if re.fullmatch("~+", line)]
    assert "~~~~~" in fences, "a fence that the completion cannot end"


def test_numbers_are_those_of_the_runs(page):
    text = page[2].read_text()
    lines = [line for line in text.splitlines() if line.startswith("| β")]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    assert cells[0][:6] == ["β 0.001 (reference)", "0, 1", "40.0", "81.0", "[68.3, 93.7]", "80.0 / 82.0"]
    assert cells[1][5:9] == ["60.0 / 61.0", "-20.5", "[-26.9, -14.1]", "0.016"]
    assert "What does β do?" in text and "--multirun grpo.beta=0.001,0.04" in text
    assert "- β 0.04: 20.5 points worse [-26.9, -14.1], p = 0.016 after Holm (2 seeds)." in text
    assert "Step 20, right" in text and "answer at 20" in text and "answer at 10" not in text, "where the answer turned"


def test_where_nothing_differs_the_bound_is_said(tmp_path):
    for number, (scale, seed, accuracy) in enumerate(
        [("group", 0, 0.8), ("group", 1, 0.82), ("none", 0, 0.81), ("none", 1, 0.815)]
    ):
        make_run(tmp_path / str(number), [f"grpo.scale={scale}", f"seed={seed}"], accuracy)
    text = write([tmp_path], tmp_path)[1].read_text()
    assert re.search(
        r"- scale none: no difference shown \(\+0\.[23] points, p = 0\.[78].* none is larger than 9\.8 points", text
    )


def test_what_holm_takes_back_is_undecided(tmp_path):
    values = {0.001: (0.8, 0.82, 0.81), 0.0: (0.79, 0.805, 0.80), 0.01: (0.81, 0.80, 0.82), 0.04: (0.82, 0.80, 0.81)}
    for number, (beta, seed) in enumerate((beta, seed) for beta in values for seed in range(3)):
        make_run(tmp_path / str(number), [f"grpo.beta={beta}", f"seed={seed}"], values[beta][seed])
    text = write([tmp_path], tmp_path)[1].read_text()
    assert "- β 0: undecided: -1.2 points [-1.9, -0.4], but p = 0.059 after Holm (3 seeds)." in text


def test_a_single_run_is_compared_with_its_base(tmp_path, dataset):
    run = make_run(tmp_path / "run", ["trainer.learning_rate=1e-4"], dataset=dataset)
    html, markdown = write([run], run)
    text = markdown.read_text()
    assert "+40.0 points [+30.0, +50.0], McNemar p = 1e-09; 45 samples gained, 5 lost" in text
    assert "- `trainer.learning_rate` is 0.0001, by default 2e-05" in text
    assert "| all runs | 0 | 40.0 | 80.0 | [75.0, 85.0] |" in text, "the interval of the run itself"
    assert "python -m echoink.train trainer.learning_rate=1e-4" in html.read_text()


def test_a_field_of_many_values_is_one_line_in_markdown_and_whole_in_html(tmp_path):
    run = make_run(tmp_path / "run")
    summary = json.loads((run / "summary.json").read_text())
    for phase in ("base", "final"):
        group = {"n": 2, "accuracy": 0.5, "interval": [0.1, 0.9]}
        summary[phase]["by"] = {"heard": {f"bird {n}": group for n in range(21)}, "need": {"ear": group, "eye": group}}
    (run / "summary.json").write_text(json.dumps(summary))
    html, markdown = write([run], run)
    assert "By heard: 21 values, in report.html." in markdown.read_text() and "bird 7" not in markdown.read_text()
    assert "| ear | 2 | 50.0 |" in markdown.read_text() and "bird 7" in html.read_text()


def test_a_file_that_is_gone_is_said(tmp_path, dataset):
    run = make_run(tmp_path / "run", dataset=dataset)
    file = run / "flips.jsonl"
    file.write_text(file.read_text().replace("sample_0", "sample_gone"))
    assert "sample_gone.jpg" in write([run], run)[0].read_text()


def test_markdown_from_a_question_is_text(tmp_path):
    run = make_run(tmp_path / "run")
    file = run / "flips.jsonl"
    file.write_text(file.read_text().replace("What <b>is</b> it?", "a | b\\n# <b>*c* [x](y)"))
    assert r"**a \| b # \<b\>\*c\* [x]\(y)** A. x · B. y" in write([run], run)[1].read_text()


def test_a_report_that_fails_costs_nothing(tmp_path, caplog):
    run = make_run(tmp_path / "run")
    (run / "flips.jsonl").write_text("{\n")
    assert try_to_write([run], run) is None and "no report of" in caplog.text


def test_the_command(tmp_path, dataset, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    runs = [str(make_run(tmp_path / name)) for name in ("a", "b")]
    main([runs[0]])
    main([*runs, "output=both"])
    main([str(dataset), "sheet.png"])
    said = capsys.readouterr().out.split()
    assert said == [f"{runs[0]}/report.html", f"{runs[0]}/report.md", "both/report.html", "both/report.md", "sheet.png"]
    assert Image.open("sheet.png").size[1] > 300
    main([str(dataset), "output=other.png"])
    assert Image.open("other.png").size[1] > 300
    for wrong in ("nowhere/sheet.png", "sheet.xyz"):
        with pytest.raises(UserError, match="cannot be written"):
            main([str(dataset), wrong])
    with pytest.raises(UserError, match="no such folder"):
        main(["nothing"])


def test_questions_are_those_of_the_experiments():
    assert question("ablate_beta").startswith("What does the KL term do?")
    assert question(None) == question("none_such") == ""


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")
def test_in_a_browser_the_page_loads_plays_and_sorts(page):
    """A probe at the page's end clicks a column and writes what it finds into the title."""
    sweep, html, _ = page
    probe = """<script>window.onerror = e => document.title = "error " + e;
    const sounds = [...document.querySelectorAll("audio")], pictures = [...document.images];
    const known = s => s.readyState > 0 ? 0 : new Promise((y, n) => { s.onloadedmetadata = y; s.onerror = n; });
    const first = () => document.querySelector("#results tbody td").textContent;
    Promise.all(sounds.map(known)).then(() => {
      const heads = [...document.querySelectorAll("#results th button")];
      heads.find(h => h.textContent.startsWith("final")).click(); const low = first();
      heads.find(h => h.textContent.startsWith("final")).click(); const high = first();
      document.body.setAttribute("data-found", [low, high, sounds.length, sounds.every(s => s.duration > 0.5),
        pictures.every(p => p.complete && p.naturalWidth > 40), document.title].join("|")); });</script></body>"""
    (sweep / "probe.html").write_text(html.read_text().replace("</body>", probe))
    command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--virtual-time-budget=20000", "--dump-dom"]
    done = subprocess.run([*command, f"file://{sweep}/probe.html"], capture_output=True, text=True, timeout=120)
    found = re.search(r'data-found="([^"]*)"', done.stdout)
    assert found, done.stderr[-2000:]
    assert found.group(1).split("|") == ["β 0.04", "β 0.001", "3", "true", "true", "beta"]


def ablated(folder, base=0.4):
    """A run's folder whose evaluations were ablated, with answers that reflect."""
    summary = json.loads((folder / "summary.json").read_text())
    for phase, full in (("base", base), ("final", summary["final"]["accuracy"])):
        drop = {"difference": full - 0.3, "interval": [0, 1], "p_value": 0.01, "lost": 3, "gained": 0, "test": "x"}
        summary[phase] |= {"chance": 0.25, "ablations": {"no_audio": {"accuracy": 0.3, "drop": drop}, "needs": None}}
    (folder / "summary.json").write_text(json.dumps(summary))
    asked = {
        "phase": "final",
        "draw": "sampled",
        "letters": "B",
        "problem": "What?",
        "options": ["A. x", "B. y"],
        "gold": "B",
        "media": {},
    }
    told = "I hear a bell and see a <b>dog</b>."
    answers = [
        ("0", f"<think>{told} So A. Wait, no. So B.</think><answer>B</answer>"),
        ("1", f"<think>{told} So B. Hold on, let me look again. B.</think><answer>B</answer>"),
        ("2", f"<think>{told}</think><answer>B</answer>"),
        ("3", "<think>I hear a bell.</think><answer>B</answer>"),
    ]
    rows = [{**asked, "id": id, "variant": "full", "completion": text, "correct": True} for id, text in answers]
    rows += [{**row, "variant": v, "correct": False} for row in rows for v in ("no_audio", "swapped_image")]
    (folder / "predictions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def test_accuracy_without_each_sense_and_the_cases_that_the_rules_find(tmp_path):
    folder = ablated(make_run(tmp_path / "run"))
    write([folder], folder)
    text = (folder / "report.md").read_text()
    assert "| base | 40.0 | 30.0 (-10.0) | 25.0 |" in text and "| trained | 80.0 | 30.0 (-50.0) | 25.0 |" in text
    assert "**revised** (doubt: 'Wait', then another answer)" in text
    assert "**reaffirmed** (doubt: 'Hold on', then the same answer)" in text
    assert text.count("**cross-modal**") == 2, "the first two that speak of both and were wrong without either"
    page = (folder / "report.html").read_text()
    assert "Without each sense" in page and "&lt;b&gt;dog" in page and "<b>dog" not in page


def test_arms_are_averaged_over_seeds_without_each_sense(tmp_path):
    for beta, seed, accuracy in RUNS:
        ablated(make_run(tmp_path / f"{beta}_{seed}", [f"grpo.beta={beta}", f"seed={seed}"], accuracy))
    write([tmp_path], tmp_path)
    text = (tmp_path / "report.md").read_text()
    assert "| β 0.001 | 81.0 | 30.0 (-51.0) | 25.0 |" in text and "| β 0.04 | 60.5 | 30.0 (-30.5) | 25.0 |" in text


def test_a_run_that_failed_says_why(tmp_path):
    run = make_run(tmp_path / "run", status="failed")
    summary = json.loads((run / "summary.json").read_text()) | {"error": "UserError: no <weights> | there"}
    (run / "summary.json").write_text(json.dumps(summary))
    html, markdown = write([run], run)
    assert "run: failed (UserError: no &lt;weights&gt; | there)" in html.read_text()
    assert r"run: failed (UserError: no \<weights\> \| there)" in markdown.read_text()
