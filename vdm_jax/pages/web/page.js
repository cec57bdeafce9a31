"use strict";

// The caption of a chart shows the value nearest to the pointer; the arrow keys step through the values.
for (const chart of document.querySelectorAll(".chart[data-points]")) {
  const points = JSON.parse(chart.dataset.points), svg = chart.querySelector("svg"), dot = svg.querySelector("circle");
  const output = chart.querySelector("output"), last = output.textContent;
  let at = points.length - 1;
  function show(x) {
    const nearest = points.reduce((a, b) => (Math.abs(b[0] - x) < Math.abs(a[0] - x) ? b : a));
    output.textContent = nearest[2];
    dot.setAttribute("cx", nearest[0]);
    dot.setAttribute("cy", nearest[1]);
    dot.setAttribute("r", 4);
  }
  function leave() {
    output.textContent = last;
    dot.setAttribute("r", 0);
  }
  svg.addEventListener("pointermove", (event) => {
    show(new DOMPoint(event.clientX, event.clientY).matrixTransform(svg.getScreenCTM().inverse()).x);
  });
  svg.addEventListener("keydown", (event) => {
    const by = { ArrowLeft: -1, ArrowRight: 1, Home: -Infinity, End: Infinity }[event.key];
    if (!by) return;
    event.preventDefault();
    at = Math.min(Math.max(at + by, 0), points.length - 1);
    show(points[at][0]);
  });
  svg.addEventListener("pointerleave", leave);
  svg.addEventListener("blur", leave);
}

// One button stops all videos. They begin stopped if the system is set to reduced motion.
const videos = [...document.querySelectorAll("video")], stop = document.getElementById("stop");
function play(on) {
  for (const video of videos) on ? video.play().catch(() => {}) : video.pause();
  stop.setAttribute("aria-pressed", String(!on));
}
if (stop) {
  stop.addEventListener("click", () => play(stop.getAttribute("aria-pressed") === "true"));
  if (matchMedia("(prefers-reduced-motion: reduce)").matches) play(false);
}
