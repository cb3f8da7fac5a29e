// The conversation: what is sent, and the answer as it comes.

import { ApiError, events, request } from "./api.js";
import { byId, element } from "./element.js";
import { plural, rate, seconds } from "./figures.js";
import { markdown } from "./markdown.js";
import { chosenModel, openSettings, sampling, system } from "./settings.js";

const KEPT = "wasmetal.conversation";
const NEAR = 80; // pixels from the end within which the view follows an answer

let messages = [];
let running = null; // an AbortController

const scroll = byId("scroll");
const list = byId("messages");
const prompt = byId("prompt");

// ---- What is shown

function row(message) {
  const mine = message.role === "user";
  const text = element("div", { class: "text" });
  const item = element(
    "li", { class: mine ? "mine" : "answer" }, element("h3", { class: "hidden" }, mine ? "You" : "Answer"), text,
  );
  list.append(item);
  byId("welcome").hidden = true;
  return { item, text, update: () => text.replaceChildren(mine ? message.content : markdown(message.content)) };
}

function finish(shown, message) {
  shown.item.classList.remove("busy");
  shown.update();
  const foot = element("div", { class: "foot" });
  if (message.note) foot.append(element("span", {}, message.note));
  if (message.content && navigator.clipboard) {
    const copy = element("button", { type: "button", class: "link" }, "Copy");
    copy.addEventListener("click", async () => {
      await navigator.clipboard.writeText(message.content);
      copy.textContent = "Copied";
      setTimeout(() => (copy.textContent = "Copy"), 1500);
    });
    foot.append(copy);
  }
  if (foot.childElementCount) shown.item.append(foot);
}

function fail(shown, error) {
  const again = element("button", { type: "button", class: "link" }, error.status === 401 ? "Enter a key" : "Try again");
  again.addEventListener("click", () => (error.status === 401 ? openSettings("key") : retry()));
  shown.item.append(element("div", { class: "error", role: "alert" }, element("span", {}, error.message), again));
}

function follow(always) {
  const left = scroll.scrollHeight - scroll.scrollTop - scroll.clientHeight;
  if (always || left < NEAR) scroll.scrollTop = scroll.scrollHeight;
}

/** Screen readers hear the answer sentence by sentence, and not token by token. */
class Spoken {
  constructor() {
    this.region = byId("spoken");
    this.region.replaceChildren();
    this.said = 0;
  }

  add(text, all = false) {
    const end = all ? text.length : Math.max(...[". ", "! ", "? ", "\n"].map((mark) => text.lastIndexOf(mark))) + 1;
    if (end <= this.said) return;
    this.region.append(element("span", {}, text.slice(this.said, end)));
    this.said = end;
  }
}

// ---- Sending

function keep() {
  try {
    sessionStorage.setItem(KEPT, JSON.stringify(messages));
  } catch {
    // It is too long to keep, and only a reload will tell.
  }
}

function busy(controller) {
  running = controller;
  byId("send").hidden = Boolean(controller);
  byId("stop").hidden = !controller;
  scroll.setAttribute("aria-busy", String(Boolean(controller)));
}

async function answer() {
  const message = { role: "assistant", content: "" };
  const shown = row(message);
  shown.item.classList.add("busy");
  follow(true);
  const spoken = new Spoken();
  const controller = new AbortController();
  busy(controller);
  const begin = performance.now();
  let first, usage, reason, frame, failure;
  const draw = () => {
    frame = 0;
    const stay = scroll.scrollHeight - scroll.scrollTop - scroll.clientHeight >= NEAR;
    shown.update();
    spoken.add(message.content);
    if (!stay) follow(true);
  };
  try {
    const opening = system() ? [{ role: "system", content: system() }] : [];
    const said = messages.map(({ role, content }) => ({ role, content }));
    const body = {
      model: chosenModel.get(), messages: [...opening, ...said], stream: true,
      stream_options: { include_usage: true }, ...sampling(),
    };
    const response = await request("/v1/chat/completions", { body, signal: controller.signal });
    for await (const event of events(response)) {
      usage = event.usage ?? usage;
      const choice = event.choices[0];
      reason = choice?.finish_reason ?? reason;
      if (!choice?.delta?.content) continue;
      first ??= performance.now();
      message.content += choice.delta.content;
      frame ||= requestAnimationFrame(draw);
    }
  } catch (error) {
    if (error.name === "AbortError") reason = "aborted";
    else if (error instanceof ApiError) failure = error;
    else failure = new ApiError(0, "The page could not read the answer.");
  }
  cancelAnimationFrame(frame);
  message.note = note(usage, reason, first && (first - begin) / 1000, first && (performance.now() - first) / 1000);
  if (message.content) messages.push(message);
  finish(shown, message);
  spoken.add(message.content, true);
  if (failure) fail(shown, failure);
  else byId("status").textContent = reason === "aborted" ? "Stopped." : "The answer is complete.";
  busy(null);
  keep();
  follow();
}

function note(usage, reason, toFirst, rest) {
  const parts = [];
  if (usage) {
    const { completion_tokens: tokens, prompt_tokens_details: details } = usage;
    parts.push(plural(tokens, "token"));
    if (tokens > 1 && rest > 0.1) parts.push(`${rate((tokens - 1) / rest)} per second`);
    if (toFirst) parts.push(`first after ${seconds(toFirst)}`);
    if (details?.cached_tokens) parts.push(`${details.cached_tokens} of ${usage.prompt_tokens} prompt tokens cached`);
  }
  if (reason === "aborted") parts.push("stopped");
  if (reason === "length") parts.push("cut off at the limit");
  return parts.join(" · ");
}

function send(text) {
  if (running || !text.trim() || !chosenModel.get()) return;
  const message = { role: "user", content: text.trim() };
  for (const error of list.querySelectorAll(".error")) error.remove();
  messages.push(message);
  row(message).update();
  prompt.value = "";
  grow();
  keep();
  answer();
}

function retry() {
  if (running) return;
  list.lastElementChild?.remove();
  if (messages.at(-1)?.role === "assistant") messages.pop();
  answer();
  prompt.focus();
}

function begin() {
  running?.abort();
  messages = [];
  list.replaceChildren();
  byId("spoken").replaceChildren();
  byId("welcome").hidden = false;
  keep();
  prompt.focus();
}

function grow() {
  prompt.style.height = "auto";
  prompt.style.height = `${prompt.scrollHeight}px`;
}

function restore() {
  try {
    messages = JSON.parse(sessionStorage.getItem(KEPT)) ?? [];
  } catch {
    messages = [];
  }
  for (const message of messages) {
    const shown = row(message);
    if (message.role === "user") shown.update();
    else finish(shown, message);
  }
  follow(true);
}

export function connectChat() {
  byId("composer").addEventListener("submit", (event) => {
    event.preventDefault();
    send(prompt.value);
  });
  prompt.addEventListener("input", grow);
  prompt.addEventListener("keydown", (event) => {
    if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
    event.preventDefault();
    send(prompt.value);
  });
  byId("stop").addEventListener("click", () => {
    running?.abort();
    prompt.focus();
  });
  document.addEventListener("keydown", (event) => {
    if (event.key === "Escape" && !byId("settings").open) running?.abort();
  });
  byId("new").addEventListener("click", begin);
  byId("examples").addEventListener("click", (event) => {
    const button = event.target.closest("button");
    if (button) send(button.textContent);
  });
  restore();
}
