// Reads values off the curves: one cursor for all charts, moved by pointer or arrow keys.
"use strict";
(() => {
  const charts = JSON.parse(document.getElementById("chart-data").textContent);
  const plots = [...document.querySelectorAll(".plot")];
  const significant = (value) => String(Number(value.toPrecision(3)));

  const compact = (value) => {
    for (const [size, suffix] of [[1e12, "T"], [1e9, "B"], [1e6, "M"], [1e3, "k"]]) {
      if (Math.abs(value) >= size * 0.9995) return significant(value / size) + suffix;
    }
    return significant(value);
  };
  const scientific = (value) => value.toExponential(2).replace(/e([+-])(\d)$/, "e$10$2");
  const forms = {
    compact,
    scientific,
    loss: (value) => value.toFixed(4),
    percent: (value) => (100 * value).toFixed(1) + "%",
    seconds: (value) => (value < 1 ? significant(value * 1000) + " ms" : significant(value) + " s"),
    gibibytes: (value) => significant(value) + " GiB",
  };

  // The point whose step is nearest: points are in order of step.
  function nearest(points, step) {
    let low = 0, high = points.length - 1;
    while (high - low > 1) {
      const middle = (low + high) >> 1;
      if (points[middle][0] <= step) low = middle; else high = middle;
    }
    return step - points[low][0] <= points[high][0] - step ? points[low] : points[high];
  }

  function readAt(plot, step) {
    const chart = charts[plot.dataset.chart];
    const outputs = plot.parentElement.querySelectorAll("output");
    chart.lines.forEach((points, line) => {
      if (points.length) outputs[line].value = forms[chart.form](nearest(points, step)[1]);
    });
  }

  function show(step) {
    for (const plot of plots) {
      const [first, last] = charts[plot.dataset.chart].x;
      const clamped = Math.min(Math.max(step, first), last);
      const cursor = plot.querySelector(".cursor");
      cursor.hidden = false;
      cursor.style.left = (100 * (clamped - first)) / (last - first) + "%";
      cursor.firstElementChild.textContent = "step " + Math.round(clamped).toLocaleString("en-US");
      readAt(plot, clamped);
    }
  }

  function hide() {
    for (const plot of plots) {
      plot.querySelector(".cursor").hidden = true;
      readAt(plot, Infinity);
    }
  }

  for (const plot of plots) {
    const [first, last] = charts[plot.dataset.chart].x;
    let step = last;
    const moveTo = (wanted) => {
      step = Math.min(Math.max(wanted, first), last);
      show(step);
    };
    plot.addEventListener("pointermove", (event) => {
      const box = plot.getBoundingClientRect();
      moveTo(first + ((last - first) * (event.clientX - box.left)) / box.width);
    });
    plot.addEventListener("pointerleave", hide);
    plot.addEventListener("blur", hide);
    plot.addEventListener("keydown", (event) => {
      const direction = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
      if (!direction) return;
      event.preventDefault();
      moveTo(step + (direction * (last - first)) / 100);
    });
  }
})();
