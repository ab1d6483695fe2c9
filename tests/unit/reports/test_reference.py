"""The pages of the reference: every option once, in a table that Markdown can read."""

import re

from castor.config.reference import ROOTS, keys
from castor.reports.reference import reference_pages


def test_every_option_has_its_row_in_the_page_of_its_section():
    pages = reference_pages()
    assert "[`rlhf`](pipeline/rlhf.md)" in pages["reference/index.md"]
    for command, root in ROOTS.items():
        for key in keys(root):
            page = f"reference/{command.removeprefix('castor ')}/{key.path[0]}.md"
            assert f'<a id="{key.dotted}"></a>`{key.dotted}` | ' in pages.get(page, pages["reference/index.md"])


def test_what_options_say_breaks_no_table():
    for page, text in reference_pages().items():
        for line in text.splitlines():
            if line.startswith("| <a "):
                assert len(re.findall(r"(?<!\\)\|", line)) == 5, (page, line)
                assert line.count("`") % 2 == 0, (page, line)


def test_a_row_has_type_range_default_meaning_and_presets():
    (row,) = [
        line
        for line in reference_pages()["reference/pipeline/rlhf.md"].splitlines()
        if line.startswith('| <a id="rlhf.NAME.advantage.gae_lambda">')
    ]
    assert "| number: ≥ 0 and ≤ 1 | `0.95` | λ of GAE<br>" in row
    assert "<br><small>`0.95` in ppo_lag</small>" in row
