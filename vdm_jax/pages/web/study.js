"use strict";

const study = JSON.parse(document.getElementById("study").textContent);
const element = (id) => document.getElementById(id);
const SIDES = ["left", "right"], KEYS = { ArrowLeft: "left", ArrowRight: "right", ArrowDown: "none" };
const videos = SIDES.map(element), preferences = [...document.querySelectorAll("[data-preference]")];
let at = 0, still = matchMedia("(prefers-reduced-motion: reduce)").matches;

// ---------------------------------------------------------------------------------------------- answers
// Stored in the browser in the format of the saved file: {study, rater, answers: {pair: {preference, scales: {name: {left, right}}}}}.
const place = `study-${study.id}`;
const random = crypto.getRandomValues(new Uint8Array(6));
let saved = { study: study.id, rater: [...random].map((b) => b.toString(16).padStart(2, "0")).join(""), answers: {} };
try {
  saved = JSON.parse(localStorage.getItem(place)) ?? saved;
} catch (error) {
  notice("This browser keeps nothing: save your answers before you close the page.");
}

function answer(pair) {
  return (saved.answers[pair.id] ??= { preference: null, scales: {} });
}

function complete(pair) {
  const stored = saved.answers[pair.id];
  return Boolean(stored?.preference) && items.every(({ name, side }) => stored.scales[name]?.[side]);
}

function change(set) {
  const pair = study.pairs[at], before = complete(pair);
  set(answer(pair));
  try {
    localStorage.setItem(place, JSON.stringify(saved));
  } catch (error) {
    notice("This browser keeps nothing: save your answers before you close the page.");
  }
  if (!before && complete(pair)) show(at + 1);
  else mark();
}

function prefer(side) {
  change((stored) => (stored.preference = side));
}

function rate(item, value) {
  change((stored) => ((stored.scales[item.name] ??= {})[item.side] = value));
  if (item.group.contains(document.activeElement)) due()?.buttons[0].focus(); // move the keyboard focus to the next item
}

function save() {
  const file = new Blob([JSON.stringify(saved, null, 2)], { type: "application/json" }), link = document.createElement("a");
  link.href = URL.createObjectURL(file);
  link.download = `answers-${study.id}-${saved.rater}.json`;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
}

function notice(text) {
  element("notice").textContent = text;
  element("notice").hidden = false;
}

// ------------------------------------------------------------------------------------------------ scales
// An item is a question about one side: a group of five buttons.
const items = Object.entries(study.scales).flatMap(([name, text]) => {
  const row = element("scales").appendChild(document.createElement("section"));
  row.className = "scale";
  row.appendChild(document.createElement("p")).textContent = text;
  return SIDES.map((side) => {
    const group = row.appendChild(document.createElement("div"));
    group.className = "values";
    group.style.gridArea = side;
    group.setAttribute("role", "group");
    group.setAttribute("aria-label", `${text} ${side} video, 1 is bad and 5 is excellent`);
    const buttons = [1, 2, 3, 4, 5].map((value) => {
      const button = group.appendChild(document.createElement("button"));
      button.textContent = value;
      button.addEventListener("click", () => rate(item, value));
      return button;
    });
    const item = { name, side, group, buttons };
    return item;
  });
});

/** The first item without a value. */
function due() {
  const scales = saved.answers[study.pairs[at].id]?.scales ?? {};
  return items.find(({ name, side }) => !scales[name]?.[side]);
}

/** The item that a typed digit rates. */
function focused() {
  return items.find(({ group }) => group.contains(document.activeElement)) ?? due();
}

function mark() {
  const pair = study.pairs[at], stored = saved.answers[pair.id];
  for (const button of preferences) {
    button.setAttribute("aria-pressed", String(stored?.preference === button.dataset.preference));
  }
  const open = due();
  for (const item of items) {
    const value = stored?.scales[item.name]?.[item.side];
    item.buttons.forEach((button, i) => button.setAttribute("aria-pressed", String(value === i + 1)));
    item.group.classList.toggle("due", item === open);
  }
  element("next").disabled = !complete(pair);
  element("back").disabled = at === 0;
}

// ------------------------------------------------------------------------------------------------- pairs
function show(number) {
  const total = study.pairs.length, ended = number >= total;
  at = Math.min(number, total - 1);
  element("intro").hidden = true;
  element("stage").hidden = ended;
  element("end").hidden = !ended;
  if (ended) {
    videos.forEach((video) => video.pause());
    element("thanks").focus();
    return;
  }
  element("where").textContent = `Pair ${at + 1} of ${total}`;
  element("progress").max = total;
  element("progress").value = study.pairs.filter(complete).length;
  element("prompt").textContent = study.pairs[at].prompt ? `“${study.pairs[at].prompt}”` : "";
  videos.forEach((video, i) => {
    URL.revokeObjectURL(video.src);
    video.src = blob(study.pairs[at][SIDES[i]]); // some browsers do not play long data URIs
  });
  play();
  mark();
  element("where").focus();
  scrollTo(0, 0);
}

function blob(address) {
  const [head, content] = address.split(",");
  const bytes = Uint8Array.from(atob(content), (letter) => letter.charCodeAt(0));
  return URL.createObjectURL(new Blob([bytes], { type: head.slice(5, head.indexOf(";")) }));
}

/** Starts both videos together, and again after the longer video has ended. */
function play() {
  element("pause").setAttribute("aria-pressed", String(still));
  for (const video of videos) still ? video.pause() : video.play().catch(() => {}); // fails if another pair was shown meanwhile
}

function pause() {
  still = !still;
  play();
}

for (const video of videos) {
  video.addEventListener("ended", () => {
    if (videos.every((other) => other.ended)) play();
  });
}

// -------------------------------------------------------------------------------------------------- input
element("count").textContent = study.pairs.length === 1 ? "one pair of videos" : `${study.pairs.length} pairs of videos`;
element("and-rate").hidden = !items.length;
element("begin").addEventListener("click", () => show(0));
element("back").addEventListener("click", () => show(at - 1));
element("next").addEventListener("click", () => show(at + 1));
element("again").addEventListener("click", () => show(study.pairs.length - 1));
element("pause").addEventListener("click", pause);
for (const button of document.querySelectorAll(".save")) button.addEventListener("click", save);
for (const button of preferences) button.addEventListener("click", () => prefer(button.dataset.preference));

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || event.repeat) return;
  const on = !element("stage").hidden, button = event.target instanceof HTMLButtonElement;
  if (on && event.key in KEYS) prefer(KEYS[event.key]);
  else if (on && /^[1-5]$/.test(event.key) && focused()) rate(focused(), Number(event.key));
  else if (on && event.key.toLowerCase() === "p") pause();
  else if (on && event.key === "Enter" && !button && complete(study.pairs[at])) show(at + 1);
  else if (event.key === "Enter" && !button && !element("intro").hidden) show(0);
  else if (event.key === "Backspace" && on && at > 0) show(at - 1);
  else if (event.key === "Backspace" && !element("end").hidden) show(study.pairs.length - 1);
  else return;
  event.preventDefault();
});

const first = study.pairs.findIndex((pair) => !complete(pair));
if (first !== 0) show(first < 0 ? study.pairs.length : first); // resume at the first unfinished pair
