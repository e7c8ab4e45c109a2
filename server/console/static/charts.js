// Draws every <figure data-chart> from the table it holds: one source for eyes, readers and scripts.
(() => {
  const plots = new Map();
  const HUES = [187, 262, 32, 145, 330, 215, 60, 0];

  const dark = () => {
    const theme = document.documentElement.dataset.theme;
    return theme ? theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
  };
  const color = (index, alpha = 1) => {
    const hue = HUES[index % HUES.length];
    return dark() ? `hsl(${hue} 55% 62% / ${alpha})` : `hsl(${hue} 62% 36% / ${alpha})`;
  };
  const css = (name) => {
    // light-dark() only resolves in a real property.
    const probe = document.createElement("span");
    probe.style.color = `var(${name})`;
    document.body.append(probe);
    const value = getComputedStyle(probe).color;
    probe.remove();
    return value;
  };

  function read(table) {
    const names = [...table.tHead.rows[0].cells].slice(1).map((cell) => cell.textContent);
    const columns = names.map(() => []);
    const times = [];
    for (const row of table.tBodies[0].rows) {
      times.push(Number(row.cells[0].dataset.value));
      names.forEach((_, i) => {
        const value = row.cells[i + 1].dataset.value;
        columns[i].push(value === "" ? null : Number(value));
      });
    }
    return { names, times, columns };
  }

  // Stacked: each series is drawn on the sum of those below it, the highest first.
  function stacked({ names, times, columns }) {
    const sums = [];
    const running = times.map(() => 0);
    for (const column of columns) {
      column.forEach((value, i) => { running[i] += value ?? 0; });
      sums.push([...running]);
    }
    return { names: [...names].reverse(), times, columns: sums.reverse(), raw: [...columns].reverse() };
  }

  // A value without neighbours makes no line: it is a point. Few values are points and a line.
  const FEW = 6;
  function alone(column) {
    const there = [...column.keys()].filter((i) => column[i] != null);
    return there.length <= FEW ? there : there.filter((i) => column[i - 1] == null && column[i + 1] == null);
  }

  // What is counted has no halves.
  const WHOLE = Array.from({ length: 9 }, (_, power) => [1, 2, 5].map((step) => step * 10 ** power)).flat();

  function figure(value, unit) {
    if (value == null) return "–";
    const digits = Math.abs(value) >= 100 || Number.isInteger(value) ? 0 : Math.abs(value) >= 10 ? 1 : 2;
    return value.toLocaleString("en", { maximumFractionDigits: digits }) + (unit ? ` ${unit}` : "");
  }

  function draw(host, table, kind, unit) {
    const data = kind === "area" ? stacked(read(table)) : read(table);
    if (data.times.length < 2) { host.hidden = true; return; }
    host.hidden = false;
    const axis = {
      stroke: css("--muted"), grid: { stroke: css("--line"), width: 1 }, ticks: { stroke: css("--line"), width: 1 },
      font: "11px system-ui", labelFont: "11px system-ui",
    };
    const series = data.names.map((name, i) => {
      return {
        label: name, stroke: color(i), width: kind === "area" ? 1 : 1.8, spanGaps: false,
        points: { show: false, size: 7, fill: color(i), filter: (u, s) => (kind === "area" ? null : alone(u.data[s])) },
        fill: kind === "area" ? color(i, dark() ? 0.5 : 0.42) : undefined,
        value: (_, value, s, at) => figure(at == null ? null : (data.raw ? data.raw[s - 1][at] : value), unit),
      };
    });
    const span = data.times[data.times.length - 1] - data.times[0];
    const newest = data.times.findLastIndex((_, i) => data.columns.some((column) => column[i] != null));
    const options = {
      tzDate: (seconds) => uPlot.tzDate(new Date(seconds * 1000), "UTC"),
      width: Math.max(200, host.clientWidth), height: 200, padding: [8, 26, 0, 0],
      cursor: { points: { size: 6 }, drag: { x: false, y: false } },
      scales: { y: { range: (_, low, high) => [0, high > 0 ? high * 1.08 : 1] } },
      axes: [
        { ...axis, space: 64, values: (_, ticks) => ticks.map((t) => clock(t, span)) },
        { ...axis, size: 46, ...(kind === "area" && { incrs: WHOLE }), values: (_, ticks) => ticks.map((t) => t.toLocaleString("en", { maximumFractionDigits: 2 })) },
      ],
      bands: kind === "area" ? series.slice(1).map((_, i) => ({ series: [i + 1, i + 2] })) : [],
      hooks: {
        ready: [(u) => u.setLegend({ idx: newest })],
        setCursor: [(u) => { if (u.cursor.idx == null) u.setLegend({ idx: newest }); }],
      },
      series: [{ label: "Time", value: (_, t) => (t == null ? "–" : `${new Date(t * 1000).toLocaleString("en-GB", { dateStyle: "medium", timeStyle: "short", timeZone: "UTC" })} UTC`) }, ...series],
    };
    plots.get(host)?.destroy();
    host.replaceChildren();
    plots.set(host, new uPlot(options, [data.times, ...data.columns], host));
  }

  function clock(seconds, span) {
    const at = new Date(seconds * 1000);
    if (span > 3 * 86400) return at.toLocaleDateString("en-GB", { day: "numeric", month: "short", timeZone: "UTC" });
    return at.toLocaleTimeString("en-GB", { hour: "2-digit", minute: "2-digit", timeZone: "UTC" });
  }

  function drawAll() {
    for (const [host, plot] of plots) {
      if (!host.isConnected) { plot.destroy(); plots.delete(host); }
    }
    for (const shape of document.querySelectorAll("figure[data-chart]")) {
      draw(shape.querySelector(".plot"), shape.querySelector(".table table"), shape.dataset.chart, shape.dataset.unit);
    }
  }

  let pending = 0;
  const soon = () => { clearTimeout(pending); pending = setTimeout(drawAll, 120); };
  drawAll();
  addEventListener("resize", soon);
  document.addEventListener("kedge:theme", soon);
  document.addEventListener("htmx:after:swap", soon);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", soon);
})();
