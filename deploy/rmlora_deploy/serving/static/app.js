/** The page: asks the server how it is every two seconds, and hands what it says to the parts. */

import { call, hasKey, keepKey, Refused } from "./api.js";
import { find, say } from "./dom.js";
import { plural } from "./format.js";
import { showLive } from "./live.js";
import { allowLoading, setUpLoading, unload } from "./loading.js";
import { Models } from "./models.js";
import { Playground } from "./playground.js";

const EVERY = 2000;
const AGAIN = 4000; // after a failure
const PATIENCE = 10_000;

let timer = null;
let models = 0;
let listed = ""; // tells which list of models the table shows
let polling = false;

const playground = new Playground({ onUntick: (id) => table.untick(id) });
const table = new Models({
  onChoice: (chosen) => playground.choose(chosen),
  onUnload: (model) => unload(model.id, refresh),
});

/** Asks the server for its figures, and for its models where they have changed. */
async function poll() {
  clearTimeout(timer);
  if (document.hidden || polling) return;
  polling = true;
  let wait = EVERY;
  try {
    const stats = await call("stats", { patience: PATIENCE });
    show("main");
    const current = `${stats.models} ${stats.newest_model}`;
    if (current !== listed) await refresh();
    listed = current;
    allowLoading(stats.loads_adapters);
    table.allowUnloading(stats.loads_adapters);
    table.takeTraffic(stats.rows);
    showLive(stats);
    state("ready", `Serving ${plural(models, "model")}`);
    say(find("notice"), "");
  } catch (error) {
    wait = AGAIN;
    failed(error);
  }
  polling = false;
  if (find("gate").hidden) timer = setTimeout(poll, wait);
}

/** Lists the models again. */
async function refresh() {
  const { data } = await call("v1/models", { patience: PATIENCE });
  models = data.length;
  table.take(data);
}

function failed(error) {
  if (error instanceof Refused && error.status === 401) return; // the gate is open already
  const stopping = error instanceof Refused && error.status === 503;
  if (error instanceof Refused) state(stopping ? "stopping" : "failed", stopping ? "Stopping" : "Error");
  else state("failed", "Unreachable");
  say(find("notice"), error instanceof Refused ? error.message : `${error.message} This page tries again every few seconds.`);
}

function state(name, words) {
  const place = find("state");
  place.dataset.state = name;
  if (place.textContent !== words) place.textContent = words;
}

/** Shows the page's content, or the form that asks for the key. */
function show(part) {
  if (!find(part).hidden) return;
  find("main").hidden = part !== "main";
  find("gate").hidden = part !== "gate";
  find("forget").hidden = part === "gate" || !hasKey();
  if (part === "gate") find("key").focus();
}

document.addEventListener("keyneeded", () => {
  say(find("gate-error"), hasKey() ? "The server does not accept this key." : "");
  say(find("notice"), "");
  keepKey(null);
  state("wait", "Locked");
  show("gate");
});

find("gate").addEventListener("submit", async (event) => {
  event.preventDefault();
  keepKey(find("key").value);
  find("key").value = "";
  await poll();
});

find("forget").addEventListener("click", () => {
  keepKey(null);
  location.reload();
});

document.addEventListener("visibilitychange", poll);
new ResizeObserver(() => showLive()).observe(find("live"));
setUpLoading(refresh);
await poll();
