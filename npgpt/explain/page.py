"""An explanation as a self-contained HTML page: no script, no font, no other file.

The shade of a number shows its size: orange above 0, blue below. An array that was shown before
links to the line that made it.
"""

import itertools
from html import escape
from pathlib import Path

import numpy as np

from npgpt.explain import wording
from npgpt.explain.highlight import parts
from npgpt.explain.numbers import aligned, matrices, norm

DARKEST = 0.5        # opacity of the largest number's shade: the number stays readable
STYLE = Path(__file__).with_name("page.css")


def html(e):
    """An explanation -> the text of its page."""
    return "\n".join(_page(e)) + "\n"


def _page(e):
    name = escape(e.name)
    yield "<!DOCTYPE html>"
    yield '<html lang="en">'
    yield '<head><meta charset="utf-8">'
    yield '<meta name="viewport" content="width=device-width, initial-scale=1">'
    yield f"<title>{name}: forward and backward, line by line</title>"
    yield f"<style>\n{STYLE.read_text(encoding='utf-8')}</style></head>"
    yield "<body><header>"
    yield f"<h1>{name}</h1>"
    yield f'<div class="path">{escape(wording.origin(e))}</div>'
    yield ('<nav aria-label="Sections"><a href="#forward">Forward</a> '
           '<a href="#backward">Backward</a> <a href="#check">Check</a></nav>')
    yield f'<pre class="formula">{escape(e.formula)}</pre>'
    yield f"<p>{escape(wording.legend(e))} {escape(SHADES)}</p>"
    yield "</header><main>"
    made = {}        # line -> id of the last step there, for links
    yield f'<section><h2 id="forward">Forward</h2>{_steps(e.forward, "f", made)}</section>'
    yield '<section><h2 id="backward">Backward</h2>'
    yield f"<p>{escape(wording.meaning(e))}</p>{_steps(e.backward, 'b', made)}</section>"
    yield '<section><h2 id="check">Check</h2>'
    yield f"<p>{escape(wording.measured(e))}</p>"
    yield from _checks(e.checks)
    side = "right" if e.right else "wrong"
    yield f'<p class="verdict {side}">{escape(wording.verdict(e))}</p></section>'
    sizes = ",".join(f"{letter}={size}" for letter, size in e.sizes.items())
    yield (f"</main><footer><p>Made by <code>python -m npgpt explain {name} --seed {e.seed} "
           f"--shape {sizes} --html FILE</code></p></footer></body></html>")


SHADES = ("The shade of a number shows its size: orange above 0, blue below. If a line changes "
          "only some numbers of an array, those are underlined.")


def _steps(steps, side, made):
    return "\n".join(_step(step, f"{side}{i}", made) for i, step in enumerate(steps))


def _step(step, name, made):
    kind = "step" if step.ran else "step idle" if step.is_idle else "step between"
    values = _values(step, made)
    if step.ran:
        made.update(dict.fromkeys(range(step.first, step.last + 1), name))
    return f'<div class="{kind}" id="{name}"><div class="code">{_source(step)}</div>{values}</div>'


def _source(step):
    """The statement as it is in the file, each line with its number."""
    code = "".join(
        "\n".join(f'<span class="{kind}">{escape(row)}</span>' if kind and row else escape(row)
                  for row in text.split("\n"))
        for kind, text in parts(step.source)
    )
    if step.note:
        code += f'<b class="note">    → {escape(step.note)}</b>'
    if step.is_idle:
        code += '<span class="note">    (not run)</span>'
    return "".join(f'<span class="line">{line}</span><pre><code>{row}</code></pre>'
                   for line, row in enumerate(code.split("\n"), step.first))


def _values(step, made):
    if not step.values:
        return ""
    found = []
    for is_brief, group in itertools.groupby(step.values, lambda value: value.brief):
        values = list(group)
        if is_brief and len(values) > 1:
            rows = "".join(f"<tr><th scope=row><b>{escape(value.name)}</b></th>"
                           f"<td>{_caption(value, made)}</td></tr>" for value in values)
            found.append(f'<div class="wide"><table class="list">{rows}</table></div>')
        else:
            found += [_value(value, made) for value in values]
    return f'<div class="values">{"".join(found)}</div>'


def _value(value, made):
    head = f'<div class="value"><b>{escape(value.name)}</b>{_caption(value, made)}</div>'
    if value.data is None or value.origin or value.brief:
        return head
    tables = _tables(value.data, value.name, value.changed)
    return f'{head}<div class="arrays">{"".join(tables)}</div>'


def _caption(value, made):
    text = escape(wording.caption(value))
    if value.origin and value.origin[1] in made:
        line = f"line {value.origin[1]}"
        text = text.replace(line, f'<a href="#{made[value.origin[1]]}">{line}</a>')
    return text


def _tables(array, name, changed=None, far=None, heading=""):
    """-> a table for each matrix of an array."""
    texts, some = aligned(array), changed is not None and not changed.all()
    largest = max((abs(float(x)) for x in array.ravel() if np.isfinite(x)), default=0.0) or 1.0
    marks = np.full(array.shape, "", dtype=object)
    if some:
        marks[changed] = " changed"
    if far is not None:
        marks[far] += " far"
    return [
        _table(label, numbers, texts, marks, largest, name, heading, array.ndim > 1)
        for (label, numbers), (_, texts), (_, marks)
        in zip(matrices(array), matrices(texts), matrices(marks))
    ]


def _table(label, numbers, texts, marks, largest, name, heading, has_rows):
    rows, columns = numbers.shape
    title = f"{heading} {label}".strip()
    caption = f"<caption>{escape(title)}</caption>" if title else ""
    head = "".join(f"<th scope=col>{j}</th>" for j in range(columns))
    body = "".join(
        "<tr>" + (f"<th scope=row>{i}</th>" if has_rows else "")
        + "".join(_cell(numbers[i, j], texts[i, j], marks[i, j], largest) for j in range(columns))
        + "</tr>" for i in range(rows)
    )
    corner = "<td class=corner></td>" if has_rows else ""
    return (f'<table aria-label="{escape(f"{name} {title}".strip())}">{caption}'
            f"<thead><tr>{corner}{head}</tr></thead><tbody>{body}</tbody></table>")


def _cell(x, text, mark, largest):
    kind, shade = mark.replace("changed", ""), ""
    before, core, after = text.partition(text.strip())
    core = f"<mark>{escape(core)}</mark>" if "changed" in mark else escape(core)
    if x and np.isfinite(x) and not isinstance(x, (int, np.integer)):
        kind += " plus" if x > 0 else " minus"
        shade = f' style="--a:{abs(float(x)) / largest * DARKEST:.2f}"'
    kind = f' class="{kind.strip()}"' if kind else ""
    return f"<td{kind}{shade}>{before}{core}{after}</td>"


def _checks(checks):
    brief = [check for check in checks if check.brief]
    for check in checks:
        if check.brief:
            continue
        side = "right" if check.right else "wrong"
        yield (f"<h3>{escape(check.name)} {check.found.shape} "
               f'<span class="{side}">{escape(wording.outcome(check))}</span></h3>')
        if check.found.shape == check.measured.shape:
            found = _tables(check.found, check.name, far=check.far, heading="backward")
            measured = _tables(check.measured, check.name, far=check.far, heading="measured")
            pairs = (f'<div class="arrays">{"".join(pair)}</div>' for pair in zip(found, measured))
            yield f'<div class="arrays">{"".join(pairs)}</div>'
    if brief:
        yield ('<div class="wide"><table class="list"><thead><tr><th scope=col>gradient</th>'
               "<th scope=col>shape</th><th scope=col>norm, backward</th>"
               "<th scope=col>norm, measured</th><th scope=col>relative error</th></tr></thead>"
               "<tbody>")
        for check in brief:
            side = "right" if check.right else "wrong"
            yield (f"<tr><th scope=row><b>{escape(check.name)}</b></th>"
                   f"<td>{check.found.shape}</td><td>{norm(check.found)}</td>"
                   f"<td>{norm(check.measured)}</td>"
                   f'<td class="{side}">{escape(wording.outcome(check))}</td></tr>')
        yield "</tbody></table></div>"
