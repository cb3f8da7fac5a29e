// The live view: what the server does at the moment, asked for again and again while somebody looks.

import { request } from "./api.js";
import { byId, element, svg } from "./element.js";
import { bytes, memory, plural, rate, seconds, whole } from "./figures.js";

const BUSY = 500;
const IDLE = 2000; // milliseconds between two looks
const COLUMNS = 40; // cells in a row of a memory picture
const CELL = 8;
const KINDS = ["untouched", "used", "shared"]; // as the server numbers them
const STATES = { waiting: "waiting", prompt: "reading the prompt", decoding: "writing", ended: "ended", stopped: "stopped" };

const MINUTE = 60; // seconds

let speeds = []; // [time, tokens per second], the latest last
let before = null;
let timer;

function speed(stats) {
  const passed = before ? stats.time - before.time : 0;
  const made = before ? stats.totals.completion_tokens - before.totals.completion_tokens : 0;
  before = stats;
  if (passed <= 0 || made < 0) return 0; // the first look, or another server
  return made / passed;
}

function showFigures(stats) {
  const now = speed(stats);
  speeds = [...speeds.filter(([time]) => time > stats.time - MINUTE), [stats.time, now]];
  byId("speed").textContent = now ? rate(now) : "0";
  const most = Math.max(...speeds.map(([, each]) => each), 1);
  const x = (time) => 120 - (120 * (stats.time - time)) / MINUTE;
  const line = ["0,30", `${x(speeds[0][0])},30`, ...speeds.map(([time, each]) => `${x(time)},${30 - (27 * each) / most}`)];
  byId("spark").querySelector(".line").setAttribute("d", `M${line.join("L")}`);
  byId("spark").querySelector(".area").setAttribute("d", `M0,30L${line.join("L")}L120,30Z`);
  const { totals, device, conversations } = stats;
  byId("copied").textContent = whole(totals.bytes_copied);
  byId("copied").classList.toggle("good", totals.bytes_copied === 0);
  byId("running").textContent = `${stats.running} of ${stats.places}`;
  byId("waiting").textContent = String(stats.waiting);
  byId("seconds").textContent = seconds(totals.device_seconds);
  for (const each of document.querySelectorAll(".conversations")) each.hidden = !conversations;
  if (conversations) {
    byId("awake").textContent = `${conversations.awake} of ${conversations.places}`;
    byId("awake-bytes").textContent = bytes(conversations.device_bytes);
  }
  byId("memory-of-device").hidden = !device;
  if (!device) return;
  const share = Math.min((100 * device.used_bytes) / device.memory_bytes, 100);
  byId("used").textContent = `${bytes(device.used_bytes)} of ${bytes(device.memory_bytes)}`;
  byId("used-bar").setAttribute("aria-valuenow", share.toFixed(1));
  byId("used-bar").setAttribute("aria-valuetext", byId("used").textContent);
  byId("used-bar").firstElementChild.style.width = `${share}%`;
}

// ---- Guests

function picture({ bytes: size, apertures, cells }) {
  const paths = KINDS.map(() => "");
  cells.forEach((kind, index) => {
    const x = (index % COLUMNS) * CELL;
    const y = Math.floor(index / COLUMNS) * CELL;
    paths[kind] += `M${x},${y}h${CELL - 1.5}v${CELL - 1.5}h${1.5 - CELL}z`;
  });
  const height = Math.ceil(cells.length / COLUMNS) * CELL;
  const shared = apertures.reduce((sum, [, length]) => sum + length, 0);
  const ranges = plural(apertures.length, "aperture");
  const label = `Linear memory of ${memory(size)}; ${shared ? `${memory(shared)} in ${ranges}` : "nothing"} shared with the device`;
  const drawn = paths.map((d, kind) => svg("path", { class: KINDS[kind], d }));
  const box = { class: "picture", viewBox: `0 0 ${COLUMNS * CELL - 1.5} ${height - 1.5}`, role: "img", "aria-label": label };
  return { image: svg("svg", box, ...drawn), shared, ranges };
}

function guestCard(guest) {
  const title = element(
    "h3", {}, `Guest ${guest.id}`, element("span", { class: `state ${guest.state}` }, STATES[guest.state]),
  );
  const parts = [plural(guest.tokens, "token")];
  if (guest.tokens_per_second) parts.push(`${rate(guest.tokens_per_second)} per second`);
  parts.push(`${whole(guest.prompt_tokens)} in the prompt`);
  const card = element("article", { class: "card guest" }, title, element("p", { class: "model" }, guest.model));
  card.append(element("p", {}, parts.join(" · ")));
  if (guest.memory) {
    const { image, shared, ranges } = picture(guest.memory);
    card.append(
      image,
      element(
        "p", { class: "caption" }, element("span", {}, `Linear memory ${memory(guest.memory.bytes)}`),
        element("span", {}, shared ? `${memory(shared)} shared, ${ranges}` : "nothing shared now"),
      ),
    );
  }
  return card;
}

function showGuests({ guests, ended }) {
  const cards = guests.map(guestCard);
  const [last, ...others] = ended;
  if (!cards.length && last) cards.push(guestCard(last));
  if (!cards.length) cards.push(element("p", { class: "card empty" }, "No guest has run yet. Its memory shows here."));
  byId("guests").replaceChildren(...cards);
  const rows = (guests.length ? ended : others).slice(0, 6);
  byId("ended-section").hidden = !rows.length;
  byId("ended").replaceChildren(
    ...rows.map((guest) => {
      const figures = [whole(guest.tokens), guest.tokens_per_second ? rate(guest.tokens_per_second) : "–", bytes(guest.bytes_copied)];
      const name = element("th", { scope: "row" }, `${guest.id} `, element("span", {}, guest.model));
      return element("tr", {}, name, ...figures.map((text) => element("td", {}, text)));
    }),
  );
}

// ---- Models

function showModels({ models }) {
  byId("models").replaceChildren(
    ...models.map((model) => {
      const about = model.kind === "guest" ? [] : [["Context", plural(model.context, "token")]];
      if (model.kind === "guest") {
        about.push(["A guest, program", model.program.slice(0, 12)], ["With", model.models.join(", ") || "no model"]);
      } else if (!model.loaded) {
        about.push(["Not loaded; takes up to", bytes(model.planned_bytes)]);
      } else {
        about.unshift(["Weights", bytes(model.weights_bytes)]);
      }
      if (model.cache) {
        about.push(["KV cache", `${bytes(model.cache.bytes)} of ${bytes(model.cache.most_bytes)}`]);
        about.push(["Mean batch", model.batches ? rate(model.batched / model.batches) : "–"]);
      } else if (model.kind === "embeddings") {
        about.push(["Makes", "embeddings"]);
      }
      const figures = about.map(([name, value]) => element("div", {}, element("dt", {}, name), element("dd", {}, value)));
      return element("li", { class: "card" }, element("h3", {}, model.id), element("dl", {}, ...figures));
    }),
  );
}

// ---- Looking again

async function look(told) {
  clearTimeout(timer);
  if (document.hidden) return;
  let wait = IDLE;
  try {
    const stats = await (await request("/stats")).json();
    if (stats.running) wait = BUSY;
    showFigures(stats);
    showGuests(stats);
    showModels(stats);
    told(stats, null);
  } catch (error) {
    before = null;
    told(null, error);
  }
  clearTimeout(timer);
  timer = setTimeout(() => look(told), wait);
}

/** Look from now on; `told` gets what was found, or the error. The function that is returned looks at once. */
export function watch(told) {
  const now = () => look(told);
  document.addEventListener("visibilitychange", now);
  now();
  return now;
}
