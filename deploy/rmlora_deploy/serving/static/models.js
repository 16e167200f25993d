/** The table of models, with filter, sorting and checkboxes. Only the rows that are shown are built, so thousands of models are no problem. */

import { drawn, element, find } from "./dom.js";
import { bytes, count, plural, short } from "./format.js";

const FIRST = { wide: 12, narrow: 6 };
const MORE = 50;
const byName = new Intl.Collator("en", { numeric: true });
const phone = matchMedia("(max-width: 720px)");

/**
 * Runs the table.
 *
 * onChoice: called with the ticked models whenever they change.
 * onUnload: called with a model to unload.
 */
export class Models {
  #all = [];
  #known = new Map();
  #rows = new Map();
  #chosen = new Set();
  #sort = { key: "traffic", descending: true };
  #limit = phone.matches ? FIRST.narrow : FIRST.wide;
  #body = find("rows");

  constructor({ onChoice, onUnload }) {
    this.onChoice = onChoice;
    this.onUnload = onUnload;
    this.unloads = false;
    find("filter").addEventListener("input", () => this.#show());
    find("task").addEventListener("change", () => this.#show());
    find("more").addEventListener("click", () => this.#showMore());
    for (const heading of document.querySelectorAll("th[data-sort]")) {
      heading.firstElementChild.addEventListener("click", () => this.#sortBy(heading.dataset.sort));
    }
  }

  /** Takes a new list of models; models that are gone are no longer ticked. */
  take(models) {
    const traffic = new Map(this.#all.map((model) => [model.id, model.traffic]));
    this.#all = models.map((model) => ({ ...model, traffic: traffic.get(model.id) ?? 0, words: words(model) }));
    this.#known = new Map(this.#all.map((model) => [model.id, model]));
    this.#rows.clear();
    this.#chosen = new Set([...this.#chosen].filter((id) => this.#known.has(id)));
    if (this.#all.length === 1) this.#chosen.add(this.#all[0].id);
    this.#body.classList.toggle("single", new Set(this.#all.map((model) => model.root)).size === 1);
    this.#offerTasks();
    this.#show();
    this.#tell();
  }

  /** Takes the rows that each model has computed; the table is not reordered while somebody uses it. */
  takeTraffic(rows) {
    let changed = false;
    for (const model of this.#all) {
      const now = rows[model.id] ?? 0;
      changed ||= now !== model.traffic;
      model.traffic = now;
    }
    if (!changed) return;
    const busy = this.#body.matches(":hover") || this.#body.contains(document.activeElement);
    if (busy) this.#fillTraffic();
    else this.#show();
  }

  /** Returns the ticked models in the order in which they were ticked. */
  get chosen() {
    return [...this.#chosen].map((id) => this.#known.get(id));
  }

  /** Unticks a model, or all. */
  untick(id) {
    if (id === undefined) this.#chosen.clear();
    else this.#chosen.delete(id);
    for (const [name, row] of this.#rows) mark(row, this.#chosen.has(name));
    this.#tell();
  }

  /** Shows the unload buttons, if the server allows unloading and there is an adapter. */
  allowUnloading(allowed) {
    allowed &&= this.#all.some((model) => model.parent !== null);
    if (allowed === this.unloads) return;
    this.unloads = allowed;
    document.querySelector("th.act").hidden = !allowed;
    this.#rows.clear();
    this.#show();
  }

  #tell() {
    this.onChoice(this.chosen);
  }

  #offerTasks() {
    const select = find("task");
    const tasks = [...new Set(this.#all.map((model) => model.task))].sort();
    const before = select.value;
    select.replaceChildren(
      element("option", { value: "" }, "All tasks"),
      ...tasks.map((task) => element("option", { value: task }, task)),
    );
    select.value = tasks.includes(before) ? before : "";
    select.hidden = tasks.length < 2;
  }

  #sortBy(key) {
    const same = this.#sort.key === key;
    const text = key === "id" || key === "task";
    this.#sort = { key, descending: same ? !this.#sort.descending : !text };
    this.#show();
  }

  #showMore() {
    const before = this.#body.rows.length;
    this.#limit += MORE;
    this.#show();
    this.#body.rows[before]?.querySelector("input").focus(); // the first new row: the button may be gone
  }

  #matching() {
    const parts = find("filter").value.toLowerCase().split(/\s+/).filter(Boolean);
    const task = find("task").value;
    const { key, descending } = this.#sort;
    const sign = descending ? -1 : 1;
    return this.#all
      .filter((model) => (!task || model.task === task) && parts.every((part) => model.words.includes(part)))
      .sort((one, other) => compare(one[key], other[key], sign) || byName.compare(one.id, other.id));
  }

  #show() {
    const matching = this.#matching();
    const shown = matching.slice(0, this.#limit);
    const focused = document.activeElement;
    this.#body.replaceChildren(...shown.map((model) => this.#row(model)));
    if (this.#body.contains(focused)) focused.focus(); // moving a row drops the focus in it
    this.#fillTraffic();
    for (const heading of document.querySelectorAll("th[data-sort]")) {
      const sorted = heading.dataset.sort === this.#sort.key;
      if (sorted) heading.setAttribute("aria-sort", this.#sort.descending ? "descending" : "ascending");
      else heading.removeAttribute("aria-sort");
    }
    const left = matching.length - shown.length;
    find("more").hidden = left === 0;
    find("more").textContent = left > MORE ? `Show ${MORE} more of ${count(left)}` : `Show ${left} more`;
    find("none").hidden = matching.length > 0;
    const all = plural(this.#all.length, "model");
    const text = matching.length === this.#all.length ? all : `${count(matching.length)} of ${all}`;
    if (find("models-count").textContent !== text) find("models-count").textContent = text;
  }

  #fillTraffic() {
    const most = Math.max(1, ...this.#all.map((model) => model.traffic));
    for (const row of this.#body.rows) {
      const { traffic } = this.#known.get(row.dataset.id);
      const cell = row.querySelector(".traffic");
      cell.firstElementChild.textContent = short(traffic);
      cell.style.setProperty("--share", traffic / most);
    }
  }

  #row(model) {
    const known = this.#rows.get(model.id);
    if (known) return known;
    const tick = element("input", { type: "checkbox", id: `tick-${model.id}`, change: () => this.#ticked(model.id, tick.checked) });
    const base = model.parent === null;
    const row = element(
      "tr",
      {},
      element("td", { class: "tick" }, tick),
      element(
        "th",
        { scope: "row" },
        element("label", { for: tick.id }, element("bdi", {}, model.id)),
        element(
          "small",
          {},
          element("span", { class: "narrow" }, model.task),
          base
            ? element("span", { class: "origin" }, "bundle")
            : element("span", { class: "origin parent" }, "in ", element("bdi", {}, model.parent)),
          model.available ? null : element("strong", { class: "lost", title: "Its files on the server changed; the server’s log says why." }, "unavailable"),
        ),
      ),
      element("td", { class: "wide" }, model.task),
      element("td", { class: "number" }, model.rank === null ? "–" : String(model.rank)),
      element("td", { class: "number" }, model.bytes ? bytes(model.bytes) : "–"),
      element("td", { class: "number traffic" }, element("span")),
      this.unloads ? element("td", { class: "act" }, base ? "" : this.#unloadButton(model)) : null,
    );
    row.dataset.id = model.id;
    mark(row, this.#chosen.has(model.id));
    this.#rows.set(model.id, row);
    return row;
  }

  /** Unloading takes two presses; the button must keep the focus in between. */
  #unloadButton(model) {
    const icon = drawn("svg", { viewBox: "0 0 16 16", "aria-hidden": "true" }, drawn("path", { d: "M8 3 14 10H2ZM2 12h12v1.5H2Z" }));
    const button = element("button", {
      type: "button",
      class: "quiet",
      click: () => {
        if (button.contains(icon)) show("Unload?", `Confirm: unload ${model.id}`);
        else this.onUnload(model);
      },
      blur: () => show(icon, `Unload ${model.id}`),
    });
    const show = (content, name) => {
      button.replaceChildren(content);
      button.setAttribute("aria-label", name);
      button.title = name;
    };
    show(icon, `Unload ${model.id}`);
    return button;
  }

  #ticked(id, on) {
    if (on) this.#chosen.add(id);
    else this.#chosen.delete(id);
    mark(this.#rows.get(id), on);
    this.#tell();
  }
}

function mark(row, on) {
  row.classList.toggle("chosen", on);
  row.querySelector("input").checked = on;
}

/** Returns the text that the filter searches. */
function words(model) {
  return [model.id, model.parent ?? "", model.task, ...model.labels].join("\n").toLowerCase();
}

/** Compares two values; null comes last in both directions. */
function compare(one, other, sign) {
  if (one === null || other === null) return Number(one === null) - Number(other === null);
  return sign * (typeof one === "string" ? byName.compare(one, other) : one - other);
}
