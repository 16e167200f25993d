/** The last minute: latency, requests and batch sizes, from /stats. */

import { drawColumns, drawLines } from "./charts.js";
import { element, find } from "./dom.js";
import { count, milliseconds, rate } from "./format.js";

const POINTS = ["p99", "p90", "p50"];
const COLUMNS = 16;

let latest = null;

/** Draws new figures, or the latest again (when the page's width changed). */
export function showLive(stats = latest) {
  latest = stats;
  if (stats === null) return;
  showLatency(stats);
  showRequests(stats);
  showBatches(stats);
}

function showLatency({ latency_ms: whole, series }) {
  const words = [...POINTS].reverse().map((point) => [point, whole[point] === null ? "–" : milliseconds(whole[point])]);
  legend("latency-legend", words, (point) => `line-${POINTS.indexOf(point)}`);
  const summary = words.map(([point, value]) => `${point} ${value}`).join(", ");
  drawLines(find("latency-chart"), POINTS.map((point) => series[point]), {
    label: whole.p50 === null ? "Latency: no requests in the last minute" : `Latency over the last minute: ${summary}`,
    tick: (value) => (value ? milliseconds(value) : "0"),
    span: "1 min ago",
  });
}

function showRequests({ series, waiting }) {
  const rates = series.requests.map((number) => number === null ? null : number / series.step);
  const now = rate(rates.at(-1) ?? 0);
  legend("requests-legend", [["per second", now], ["rows waiting", String(waiting)]]);
  drawColumns(find("requests-chart"), rates, {
    label: `Requests over the last minute: ${now} per second now, ${waiting} rows waiting`,
    tick: rate,
    span: "1 min ago",
  });
}

function showBatches({ batches, max_batch: allowed }) {
  const sizes = Object.entries(batches).map(([size, number]) => [Number(size), number]);
  const all = sizes.reduce((sum, [, number]) => sum + number, 0);
  const rows = sizes.reduce((sum, [size, number]) => sum + size * number, 0);
  const largest = Math.max(allowed, ...sizes.map(([size]) => size));
  const wide = Math.ceil(largest / COLUMNS);
  const columns = Array(Math.ceil(largest / wide)).fill(0);
  for (const [size, number] of sizes) columns[Math.ceil(size / wide) - 1] += number;
  const names = columns.map((_, index) => wide === 1 ? String(index + 1) : `${index * wide + 1}–${(index + 1) * wide}`);
  const mean = all ? rate(rows / all) : "–";
  legend("batches-legend", [["rows on average", mean], ["batches", count(all)]]);
  drawColumns(find("batches-chart"), columns, {
    label: all ? `Rows of a batch in the last minute: ${mean} on average` : "Batch sizes: no batches in the last minute",
    tick: rate,
    names,
  });
}

function legend(id, words, mark) {
  find(id).replaceChildren(
    ...words.map(([name, value]) =>
      element("li", mark ? { class: mark(name) } : {}, element("b", {}, value), ` ${name}`),
    ),
  );
}
