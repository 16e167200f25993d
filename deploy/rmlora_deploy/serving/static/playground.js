/** The playground: one text, pair of texts or image, several models, their answers side by side. */

import { answerCard, compareVectors, summary } from "./answers.js";
import { call } from "./api.js";
import { element, find, say } from "./dom.js";
import { plural } from "./format.js";
import { readImage } from "./image.js";

const PARALLEL = 4; // a browser opens six connections to a server, and the charts need one

const readsImages = (model) => model.task.startsWith("image");
const tags = (model) => model.task === "token-classification";
const answersQuestions = (model) => model.task === "question-answering";
const readsPairs = (model) => model.input_form === "pair";
const mayReadPairs = (model) => model.task === "text-classification" && model.input_form !== "text";
const embedsTexts = (model) => model.task === "feature-extraction";
const embedsImages = (model) => model.task === "image-feature-extraction";

export class Playground {
  #models = [];
  #image = null;
  #run = null;

  /** onUntick: called with the id of a model to untick, or without one to untick all. */
  constructor({ onUntick }) {
    this.onUntick = onUntick;
    find("ask").addEventListener("submit", (event) => {
      event.preventDefault();
      this.send();
    });
    find("clear").addEventListener("click", () => {
      onUntick();
      find("text").focus();
    });
    find("image").addEventListener("change", () => this.#pick());
    document.addEventListener("keydown", (event) => {
      if (event.key === "Enter" && (event.ctrlKey || event.metaKey) && !find("main").hidden) {
        event.preventDefault();
        this.send();
      }
    });
    // On a phone, a link to the playground is shown while the playground is out of sight.
    new IntersectionObserver(([seen]) => find("jump").classList.toggle("there", seen.isIntersecting)).observe(find("playground"));
    if (/Mac|iP(hone|ad)/.test(navigator.platform)) document.querySelector(".keys kbd").textContent = "⌘";
  }

  /** Takes the models to ask, and shows the fields that they need. */
  choose(models) {
    this.#models = models;
    find("hint").hidden = models.length > 0;
    find("chosen").hidden = find("clear").hidden = models.length === 0;
    find("chosen").replaceChildren(...models.map((model) => this.#chip(model)));
    find("image-field").hidden = !models.some(readsImages);
    find("text-field").hidden = models.length > 0 && models.every(readsImages);
    find("second-field").hidden = !models.some((model) => embedsTexts(model) || mayReadPairs(model) || answersQuestions(model));
    find("second-hint").textContent = models.some(answersQuestions) ? "that holds the answer" : models.some(readsPairs) ? "of the pair" : models.some(embedsTexts) ? "to compare with, optional" : "of a pair, optional";
    find("send").textContent = models.length ? `Ask ${plural(models.length, "model")}` : "Ask";
    say(find("jump"), models.length ? `${plural(models.length, "model")} ticked: to the playground` : "");
  }

  /** Asks every chosen model, and aborts an earlier question that is still waiting. */
  async send() {
    const missing = this.#missing();
    if (missing) {
      const [field, sentence] = missing;
      say(find("answers-status"), sentence);
      find(field).focus();
      return;
    }
    this.#run?.abort();
    const run = (this.#run = new AbortController());
    const asked = this.#models.map((model) => ({ model, card: element("article", { class: "answer", "aria-busy": "true" }) }));
    for (const item of asked) item.card.append(...answerCard(item));
    find("answers").replaceChildren(...asked.map((item) => item.card));
    say(find("answers-status"), `Asking ${plural(asked.length, "model")} …`);
    const queue = [...asked];
    const worker = async () => {
      for (let item = queue.shift(); item; item = queue.shift()) await this.#ask(item, run.signal);
    };
    await Promise.all(Array.from({ length: PARALLEL }, worker));
    if (run.signal.aborted) return;
    compareVectors(asked);
    asked[0].card.scrollIntoView({ block: "nearest" });
    say(find("answers-status"), summary(asked));
  }

  async #ask(item, signal) {
    if (signal.aborted) return;
    const started = performance.now();
    try {
      const { path, body } = this.#question(item.model);
      item.text = body.inputs;
      item.answer = await call(path, { body, signal });
    } catch (error) {
      if (error.name === "AbortError") return;
      item.error = error.message;
    }
    item.took = performance.now() - started;
    item.card.replaceChildren(...answerCard(item));
    item.card.setAttribute("aria-busy", "false");
  }

  #question(model) {
    const text = find("text").value;
    if (embedsImages(model)) return { path: "v1/embeddings", body: { model: model.id, input: [this.#image] } };
    if (readsImages(model)) return { path: "classify", body: { model: model.id, input: this.#image } };
    if (tags(model)) return { path: "predict", body: { model: model.id, inputs: text } };
    const second = find("second").value;
    if (answersQuestions(model)) return { path: "predict", body: { model: model.id, inputs: { question: text, context: second } } };
    if (!embedsTexts(model)) {
      // With a model that embeds, a second text is to be compared with the first.
      const pairs = readsPairs(model) || (mayReadPairs(model) && !this.#models.some(embedsTexts));
      const input = pairs && second.trim() ? [[text, second]] : text;
      return { path: "classify", body: { model: model.id, input } };
    }
    return { path: "v1/embeddings", body: { model: model.id, input: second.trim() ? [text, second] : [text] } };
  }

  /** Returns a field that is still empty and a sentence that asks for it; null if there is none. */
  #missing() {
    if (!this.#models.length) return ["filter", "Tick a model in the list first."];
    if (this.#models.some((model) => !readsImages(model)) && !find("text").value.trim()) return ["text", "Type a text first."];
    if (this.#models.some(readsPairs) && !find("second").value.trim()) return ["second", "Type a second text: the model reads pairs."];
    if (this.#models.some(readsImages) && !this.#image) return ["image", "Choose an image first."];
    return null;
  }

  async #pick() {
    const [file] = find("image").files;
    this.#image = null;
    try {
      if (file) this.#image = await readImage(file);
      say(find("answers-status"), "");
    } catch (error) {
      say(find("answers-status"), error.message);
    }
    find("preview").hidden = !this.#image;
    if (this.#image) find("preview").src = this.#image;
  }

  #chip(model) {
    return element(
      "li",
      {},
      element("bdi", {}, model.id),
      element("button", { type: "button", "aria-label": `Do not ask ${model.id}`, click: () => this.#drop(model) }, "×"),
    );
  }

  #drop(model) {
    const index = this.#models.indexOf(model);
    this.onUntick(model.id);
    const left = find("chosen").querySelectorAll("button");
    (left[Math.min(index, left.length - 1)] ?? find("text")).focus();
  }
}
