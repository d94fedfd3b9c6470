// Joins the points of a case over the recipes, in all three plots at once. report.js has drawn the plots by Plotly.
(() => {
  "use strict";
  // Draw the line of a case, null for none, in a plot: its first trace has the points, its last one is the line.
  function join(chart, number) {
    if (!chart.data) return; // not drawn yet
    const points = chart.data[0];
    const indices = [...points.customdata.keys()].filter((i) => points.customdata[i] === number);
    const values = (name) => [indices.map((i) => points[name][i])];
    Plotly.restyle(chart, { x: values("x"), y: values("y") }, [chart.data.length - 1]);
  }

  for (const root of document.querySelectorAll(".dice-plots:not(.dice-ready)")) {
    root.classList.add("dice-ready");
    const charts = [...root.querySelectorAll(".chart")];
    const select = root.querySelector("select");
    if (!select) continue;
    const chosen = () => (select.value === "" ? null : Number(select.value));
    const joinAll = (number) => charts.forEach((chart) => join(chart, number));
    select.addEventListener("change", () => joinAll(chosen()));
    for (const chart of charts) {
      chart.addEventListener("pointerenter", () => {
        if (!chart.on || chart.dataset.listening) return;
        chart.dataset.listening = "true";
        chart.on("plotly_hover", ({ points: [point] }) => {
          if (point.curveNumber === 0) joinAll(point.customdata);
        });
        chart.on("plotly_unhover", () => joinAll(chosen()));
      });
    }
  }
})();
