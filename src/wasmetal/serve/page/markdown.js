// The part of Markdown that models write most: paragraphs, headings, lists, code, emphasis. Everything becomes text nodes
// in elements that are made here, so an answer cannot bring markup of its own. Links and pictures stay text.

import { element } from "./element.js";

const FENCE = /^\s*(```|~~~)\s*([\w+#.-]*)/;
const HEADING = /^(#{1,6})\s+(.*)$/;
const BULLET = /^\s*[-*+]\s+(.*)$/;
const NUMBER = /^\s*(\d{1,9})[.)]\s+(.*)$/;
const INLINE = /(`+)([^`]|[^`].*?[^`])\1(?!`)|\*\*(?=\S)(.+?\S)\*\*|\*(?=[^\s*])([^*]*[^\s*])\*/s;

export function markdown(text) {
  const out = document.createDocumentFragment();
  const lines = text.split("\n");
  let at = 0;
  while (at < lines.length) {
    const line = lines[at];
    const fence = FENCE.exec(line);
    const heading = HEADING.exec(line);
    if (!line.trim()) {
      at++;
    } else if (fence) {
      const begin = ++at;
      while (at < lines.length && !lines[at].trim().startsWith(fence[1])) at++;
      out.append(code(lines.slice(begin, at++).join("\n"), fence[2]));
    } else if (heading) {
      out.append(element("p", { class: "heading" }, ...inline(heading[2])));
      at++;
    } else if (BULLET.test(line) || NUMBER.test(line)) {
      at = list(lines, at, out);
    } else {
      const begin = at;
      while (at < lines.length && !starts(lines[at], at > begin)) at++;
      out.append(element("p", {}, ...inline(lines.slice(begin, at).join("\n"))));
    }
  }
  return out;
}

function starts(line, other) {
  return !line.trim() || (other && (FENCE.test(line) || HEADING.test(line) || BULLET.test(line) || NUMBER.test(line)));
}

function list(lines, at, out) {
  const ordered = NUMBER.exec(lines[at]);
  const pattern = ordered ? NUMBER : BULLET;
  const items = [];
  for (; at < lines.length; at++) {
    const item = pattern.exec(lines[at]);
    if (item) items.push(item.at(-1));
    else if (lines[at].trim() && /^\s/.test(lines[at])) items[items.length - 1] += `\n${lines[at].trim()}`;
    else if (lines[at].trim() || !pattern.test(lines[at + 1] ?? "")) break;
  }
  const made = items.map((item) => element("li", {}, ...inline(item)));
  out.append(ordered ? element("ol", { start: ordered[1] }, ...made) : element("ul", {}, ...made));
  return at;
}

function code(text, language) {
  const block = element("pre", { tabindex: "0" }, element("code", {}, text));
  if (language) block.dataset.language = language;
  return block;
}

function inline(text) {
  const out = [];
  for (let rest = text; rest; ) {
    const found = INLINE.exec(rest);
    if (!found) return [...out, rest];
    if (found.index) out.push(rest.slice(0, found.index));
    if (found[2] !== undefined) out.push(element("code", {}, found[2]));
    else if (found[3] !== undefined) out.push(element("strong", {}, ...inline(found[3])));
    else out.push(element("em", {}, ...inline(found[4])));
    rest = rest.slice(found.index + found[0].length);
  }
  return out;
}
