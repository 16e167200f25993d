/** Small SVG charts, redrawn each time; colors and fonts come from the style sheet. */

import { drawn } from "./dom.js";

const HEIGHT = 132;
const EDGE = { right: 6, top: 8, bottom: 20 };

/** Draws lines over time: `lines` are arrays of numbers or null; the last is drawn on top. */
export function drawLines(svg, lines, { label, tick, span }) {
  const frame = prepare(svg, label, Math.max(...lines.flat().map((value) => value ?? 0)), tick);
  timeAxis(frame, span);
  lines.forEach((values, number) => {
    const point = (value, index) => [frame.x(index / (values.length - 1)), frame.y(value)];
    svg.append(drawn("path", { class: `line line-${number}`, d: path(values, point) }));
    for (const index of isolated(values)) {
      const [cx, cy] = point(values[index], index);
      svg.append(drawn("circle", { class: `dot line-${number}`, cx, cy, r: 2.5 }));
    }
  });
}

/** Draws one column for each number; null leaves a gap. */
export function drawColumns(svg, values, { label, tick, span, names }) {
  const frame = prepare(svg, label, Math.max(...values.map((value) => value ?? 0)), tick);
  if (span) timeAxis(frame, span);
  const pitch = frame.width / values.length;
  const gap = Math.min(3, pitch * 0.25);
  const every = Math.ceil((8 + 7 * Math.max(...(names ?? []).map((name) => name.length))) / pitch); // label only as many columns as there is room for
  values.forEach((value, index) => {
    const x = frame.left + index * pitch;
    if (value) {
      const y = Math.min(frame.y(value), frame.y(0) - 1.5);
      const column = drawn("rect", { class: "column", x: x + gap / 2, y, width: pitch - gap, height: frame.y(0) - y, rx: 1 });
      if (names) column.append(drawn("title", {}, `${names[index]}: ${tick(value)}`));
      svg.append(column);
    }
    if (names && (index + 1) % every === 0) text(svg, names[index], x + pitch / 2, HEIGHT - 4, "middle");
  });
}

/** Draws a row of numbers around zero, so that one sees at a glance if two vectors differ. */
export function drawSpark(svg, values) {
  const [width, height] = [values.length * 6, 28];
  const largest = Math.max(...values.map(Math.abs)) || 1;
  svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
  svg.replaceChildren(
    ...values.map((value, index) => {
      const size = Math.max((Math.abs(value) / largest) * (height / 2), 0.5);
      const y = value < 0 ? height / 2 : height / 2 - size;
      return drawn("rect", { class: value < 0 ? "below" : "above", x: index * 6 + 1, y, width: 4, height: size });
    }),
  );
}

function prepare(svg, label, largest, tick) {
  const whole = svg.clientWidth || 320;
  const top = ceiling(largest);
  const ticks = largest ? [0, top / 2, top] : [0];
  const left = 14 + 6.5 * Math.max(2, ...ticks.map((value) => tick(value).length));
  const frame = {
    svg,
    left,
    width: whole - left - EDGE.right,
    x: (share) => left + share * (whole - left - EDGE.right),
    y: (value) => HEIGHT - EDGE.bottom - (value / top) * (HEIGHT - EDGE.top - EDGE.bottom),
  };
  svg.setAttribute("viewBox", `0 0 ${whole} ${HEIGHT}`);
  svg.setAttribute("aria-label", label);
  svg.replaceChildren();
  for (const value of ticks) {
    const y = frame.y(value);
    svg.append(drawn("line", { class: value ? "grid" : "axis", x1: left, x2: whole - EDGE.right, y1: y, y2: y }));
    text(svg, tick(value), left - 8, y + 3.5, "end");
  }
  return frame;
}

function timeAxis(frame, span) {
  text(frame.svg, span, frame.left, HEIGHT - 4, "start");
  text(frame.svg, "now", frame.left + frame.width, HEIGHT - 4, "end");
}

function text(svg, content, x, y, anchor) {
  svg.append(drawn("text", { x, y, "text-anchor": anchor }, content));
}

/** Returns the smallest of 1, 2, 4, 6, 8 × 10ⁿ that is not below `value`, so that half of it is a round number too. */
function ceiling(value) {
  if (!value) return 1;
  const ten = 10 ** Math.floor(Math.log10(value));
  return [1, 2, 4, 6, 8, 10].map((factor) => factor * ten).find((candidate) => candidate >= value) ?? value;
}

/** Returns the indices of numbers without a neighbor, which a line cannot show. */
function isolated(values) {
  const missing = (index) => (values[index] ?? null) === null;
  return [...values.keys()].filter((index) => !missing(index) && missing(index - 1) && missing(index + 1));
}

/** Returns a path with a gap where a number is missing. */
function path(values, point) {
  return values
    .map((value, index) => {
      if (value === null) return "";
      const [x, y] = point(value, index).map((part) => part.toFixed(1));
      return `${(values[index - 1] ?? null) === null ? "M" : "L"}${x} ${y}`;
    })
    .join("");
}
