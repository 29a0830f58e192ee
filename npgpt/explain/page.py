"""An explanation as one page of HTML that needs nothing else: no script, no font, no other file.

Each number is shaded by its size: orange above 0, blue below. A name that was shown before links to
the line that made it.
"""

from html import escape
from pathlib import Path

import numpy as np

from npgpt.explain import wording
from npgpt.explain.highlight import parts
from npgpt.explain.numbers import aligned, matrices, norm

DARKEST = 0.5        # opacity of the largest number's shade: the number on it stays readable
STYLE = Path(__file__).with_name("page.css")


def html(e):
    """An explanation -> the text of the page."""
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
    yield f"<h1>{escape(wording.title(e))}</h1>"
    yield f'<div class="path">{escape(e.path)}</div>'
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
    yield "</main></body></html>"


SHADES = ("The larger a number, the stronger its shade: orange above 0, blue below. Underlined: "
          "changed, where a line did not change all.")


def _steps(steps, side, made):
    return "\n".join(_step(step, f"{side}{i}", made) for i, step in enumerate(steps))


def _step(step, name, made):
    kind = "step" if step.ran else "step idle" if step.is_idle else "step between"
    note = f'<span class="came">    → {escape(step.note)}</span>' if step.note else ""
    if step.is_idle:
        note = '<span class="note">    (not run)</span>'
    code = "".join(f'<span class="{kind}">{escape(text)}</span>' if kind else escape(text)
                   for kind, text in parts(step.source))
    numbers = "\n".join(str(n) for n in range(step.first, step.last + 1))
    values = _values(step, made)
    if step.ran:
        made.update(dict.fromkeys(range(step.first, step.last + 1), name))
    return (f'<div class="{kind}" id="{name}"><div class="code"><pre class="number">{numbers}</pre>'
            f"<pre><code>{code}{note}</code></pre></div>{values}</div>")


def _values(step, made):
    if not step.values:
        return ""
    brief = [value for value in step.values if value.brief]
    found = [_value(value, made) for value in step.values if not value.brief]
    if brief:
        rows = "".join(f"<tr><th scope=row><b>{escape(value.name)}</b></th>"
                       f"<td>{_caption(value, made)}</td></tr>" for value in brief)
        found.append(f'<div class="wide"><table class="list">{rows}</table></div>')
    return f'<div class="values">{"".join(found)}</div>'


def _value(value, made):
    head = f'<div class="value"><b>{escape(value.name)}</b>{_caption(value, made)}</div>'
    if value.data is None or value.origin:
        return head
    tables = _tables(value.data, value.name, value.changed)
    return f'{head}<div class="arrays">{tables}</div>'


def _caption(value, made):
    text = escape(wording.caption(value))
    if value.origin and value.origin[1] in made:
        line = f"line {value.origin[1]}"
        text = text.replace(line, f'<a href="#{made[value.origin[1]]}">{line}</a>')
    return text


def _tables(array, name, changed=None, far=None, heading=""):
    """A table for each matrix of an array."""
    texts, some = aligned(array), changed is not None and not changed.all()
    largest = max((abs(float(x)) for x in array.ravel() if np.isfinite(x)), default=0.0) or 1.0
    marks = np.full(array.shape, "", dtype=object)
    if some:
        marks[changed] = " changed"
    if far is not None:
        marks[far] += " far"
    return "".join(
        _table(label, numbers, texts, marks, largest, name, heading, array.ndim > 1)
        for (label, numbers), (_, texts), (_, marks)
        in zip(matrices(array), matrices(texts), matrices(marks))
    )


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
    kind, shade = mark, ""
    if x and np.isfinite(x) and not isinstance(x, (int, np.integer)):
        kind += " plus" if x > 0 else " minus"
        shade = f' style="--a:{abs(float(x)) / largest * DARKEST:.2f}"'
    kind = f' class="{kind.strip()}"' if kind else ""
    return f"<td{kind}{shade}>{escape(text)}</td>"


def _checks(checks):
    brief = [check for check in checks if check.brief]
    for check in checks:
        if check.brief:
            continue
        side = "right" if check.right else "wrong"
        yield (f"<h3>{escape(check.name)} {check.found.shape} "
               f'<span class="{side}">{escape(wording.outcome(check))}</span></h3>')
        if check.found.shape == check.measured.shape:
            yield '<div class="arrays">'
            yield _tables(check.found, check.name, far=check.far, heading="backward")
            yield '</div><div class="arrays">'
            yield _tables(check.measured, check.name, far=check.far, heading="measured")
            yield "</div>"
    if brief:
        yield ('<div class="wide"><table class="list"><thead><tr><th scope=col>gradient</th>'
               "<th scope=col>shape</th><th scope=col>norm, backward</th>"
               "<th scope=col>norm, measured</th><th scope=col></th></tr></thead><tbody>")
        for check in brief:
            side = "right" if check.right else "wrong"
            yield (f"<tr><th scope=row><b>{escape(check.name)}</b></th>"
                   f"<td>{check.found.shape}</td><td>{norm(check.found)}</td>"
                   f"<td>{norm(check.measured)}</td>"
                   f'<td class="{side}">{escape(wording.outcome(check))}</td></tr>')
        yield "</tbody></table></div>"
