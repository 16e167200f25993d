/** Renders an answer: labels with their probabilities, numbers, a text with its entities or its answer, a vector, or an error message. */

import { drawSpark } from "./charts.js";
import { drawn, element } from "./dom.js";
import { amount, count, milliseconds, percent, plural } from "./format.js";

const LABELS = 5;
const NUMBERS = 6;
const SPARK = 40;

/** The tasks for texts and for images end alike. */
const embeds = (model) => model.task.endsWith("feature-extraction");

/** Returns the parts of a card. The item has `answer` or `error` once it is known, and `took` in milliseconds. */
export function answerCard(item) {
  const { model, answer, error, took } = item;
  const head = element(
    "header",
    {},
    element("h3", {}, element("bdi", {}, model.id)),
    took === undefined ? null : element("span", { class: "took" }, milliseconds(took)),
  );
  if (error) return [head, element("p", { class: "error" }, error)];
  if (!answer) return [head, element("p", { class: "hint" }, "…")];
  if (model.task === "token-classification") return [head, ...entityParts(item.text, answer)];
  if (model.task === "question-answering") return [head, ...spanParts(item.text.context, answer)];
  return [head, ...(embeds(model) ? vectorParts(answer) : labelParts(model, answer.data[0]))];
}

/** Adds to each vector's card its cosine with the first vector, if both have the same number of dimensions. */
export function compareVectors(asked) {
  const made = asked.filter(({ model, answer }) => answer && embeds(model));
  const [first, ...others] = made;
  for (const { card, answer } of others) {
    const [one, other] = [first, { answer }].map((item) => item.answer.data[0].embedding);
    if (one.length !== other.length) continue;
    card.append(similarity(["Cosine with ", element("bdi", {}, first.model.id)], cosine(one, other)));
  }
}

/** Returns a one-line summary, which screen readers read aloud. */
export function summary(asked) {
  const answered = asked.filter(({ answer }) => answer);
  const failed = asked.length - answered.length;
  const slowest = Math.max(...asked.map(({ took }) => took ?? 0));
  const parts = [];
  if (answered.length) parts.push(`${plural(answered.length, "answer")} in ${milliseconds(slowest)}`);
  if (failed) parts.push(`${count(failed)} failed`);
  return `${parts.join(", ")}.`;
}

/** A model with one output, as rerankers have, and one for regression give numbers: no share of anything. */
const givesNumbers = (model) => model.function_to_apply === "none" || model.labels.length === 1;

function labelParts(model, { probs }) {
  const ranked = probs.map((share, index) => ({ label: model.labels[index] ?? `label ${index}`, share }));
  if (givesNumbers(model)) return [element("ol", { class: "scores" }, ...ranked.map(score))];
  ranked.sort((one, other) => other.share - one.share);
  const [shown, rest] = ranked.length <= LABELS + 1 ? [ranked, []] : [ranked.slice(0, LABELS), ranked.slice(LABELS)];
  const parts = [element("ol", { class: "bars" }, ...shown.map(bar))];
  if (rest.length) {
    parts.push(element("details", {}, element("summary", {}, `${plural(rest.length, "more label")}`), element("ol", { class: "bars" }, ...rest.map(bar))));
  }
  return parts;
}

function bar({ label, share }) {
  const made = element("li", {}, element("bdi", {}, label), element("span", { class: "share" }, percent(share)));
  made.style.setProperty("--share", share);
  return made;
}

function score({ label, share }) {
  return element("li", {}, element("bdi", {}, label), element("span", { class: "share" }, amount(share)));
}

/** Positions count characters, and some characters are two units of a JavaScript string. */
function entityParts(text, entities) {
  if (!entities.length) return [element("p", { class: "hint" }, "No entities.")];
  const characters = [...text];
  const parts = [];
  let done = 0;
  for (const { entity_group: label, score, start, end } of entities) {
    parts.push(characters.slice(done, start).join(""), entityMark(characters.slice(start, end).join(""), label, score));
    done = end;
  }
  return [element("p", { class: "entities" }, ...parts, characters.slice(done).join(""))];
}

function spanParts(context, { answer, score, start, end }) {
  if (!answer) return [element("p", { class: "hint" }, `No answer in the text (${percent(score)}).`)];
  return entityParts(context, [{ entity_group: percent(score), score, start, end }]);
}

function entityMark(words, label, score) {
  return element("mark", { title: percent(score) }, element("bdi", {}, words), element("small", {}, element("bdi", {}, label)));
}

function vectorParts({ data }) {
  const vectors = data.map(({ embedding }) => embedding);
  const [vector] = vectors;
  const length = Math.hypot(...vector);
  const spark = drawn("svg", { class: "spark", "aria-hidden": "true", preserveAspectRatio: "none" });
  drawSpark(spark, vector.slice(0, SPARK));
  const first = vector.slice(0, NUMBERS).map((number) => number.toFixed(3)).join("  ");
  const parts = [
    element("p", { class: "facts" }, element("b", {}, count(vector.length)), " dimensions, length ", element("b", {}, length.toFixed(2))),
    spark,
    element("p", { class: "numbers" }, `${first}${vector.length > NUMBERS ? "  …" : ""}`),
  ];
  if (vectors.length > 1) parts.push(similarity(["Similarity of the two texts"], cosine(...vectors)));
  return parts;
}

function similarity(name, value) {
  const made = element("p", { class: "similarity" }, element("span", {}, ...name), element("b", { class: "share" }, value.toFixed(3)));
  made.style.setProperty("--share", Math.max(0, value));
  return made;
}

function cosine(one, other) {
  const product = one.reduce((sum, value, index) => sum + value * other[index], 0);
  return product / (Math.hypot(...one) * Math.hypot(...other) || 1);
}
