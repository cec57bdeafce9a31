"use strict";

// Charts say the values nearest to the pointer.
for (const chart of document.querySelectorAll(".chart")) {
  const lines = JSON.parse(chart.dataset.points), svg = chart.querySelector("svg");
  const said = chart.querySelector("output"), last = said.textContent, dots = [...svg.querySelectorAll("circle")];
  svg.addEventListener("pointermove", (event) => {
    const x = new DOMPoint(event.clientX, event.clientY).matrixTransform(svg.getScreenCTM().inverse()).x;
    const nearest = lines.map((points) => points.reduce((a, b) => (Math.abs(b[0] - x) < Math.abs(a[0] - x) ? b : a)));
    said.textContent = nearest.map((point) => point[2]).join("; ");
    dots.forEach((dot, i) => {
      dot.setAttribute("cx", nearest[i][0]);
      dot.setAttribute("cy", nearest[i][1]);
      dot.setAttribute("r", 4);
    });
  });
  svg.addEventListener("pointerleave", () => {
    said.textContent = last;
    dots.forEach((dot) => dot.setAttribute("r", 0));
  });
}

// One button stops all videos; who asked for less motion finds them stopped.
const videos = [...document.querySelectorAll("video")], stop = document.getElementById("stop");
function play(on) {
  for (const video of videos) on ? video.play() : video.pause();
  stop.setAttribute("aria-pressed", String(!on));
}
if (stop) {
  stop.addEventListener("click", () => play(stop.getAttribute("aria-pressed") === "true"));
  if (matchMedia("(prefers-reduced-motion: reduce)").matches) play(false);
}
