"use strict";
// Draws the numbers that stand in the page; nothing is fetched.
(async () => {
  const payload = JSON.parse(document.getElementById("numbers").textContent);
  const root = document.documentElement;
  const narrow = () => window.innerWidth < 600;

  const unpacked = async (id) => {
    const bytes = Uint8Array.from(atob(document.getElementById(id).textContent.trim()), (one) => one.charCodeAt(0));
    const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
    return new Response(stream).text();
  };
  const load = async () => {
    const script = document.createElement("script");
    script.textContent = await unpacked("plotly");
    document.head.append(script);
  };

  const ink = (name) => getComputedStyle(root).getPropertyValue(name).trim();
  // plotly reads a little markup in what it writes
  const plain = (text) => String(text).replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;");
  const place = (x, scale) => (scale === "log" ? Math.log10(1 + x) : x);
  const DASH = { null: "dot", baseline: "dash" };
  const dark = () => {
    const asked = root.dataset.theme;
    return asked ? asked === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
  };
  // the darkest of the print colours, lighter where the page is dark
  const visible = (colour) => {
    if (!dark()) return colour;
    const parts = [1, 3, 5].map((at) => parseInt(colour.slice(at, at + 2), 16));
    return "rgb(" + parts.map((part) => Math.round(part + (255 - part) * 0.35)).join(",") + ")";
  };

  // null is no number: an interval that is not known has no length
  const reach = (from, to) => (from === null || to === null ? 0 : to - from);

  const traces = (panel, scale) => {
    const found = [];
    const named = new Set();
    for (const curve of panel.curves) {
      const x = payload.arrays[curve.x];
      const y = payload.arrays[curve.y];
      const at = panel.x_names.length ? x : x.map((one) => place(one, scale));
      const colour = visible(curve.colour);
      const key = curve.label + "/" + curve.role;
      const base = {
        x: at, y, name: plain(curve.label), showlegend: panel.curves.length > 1 && !named.has(key), connectgaps: true,
        legendgroup: curve.role === "null" || curve.role === "baseline" ? plain(key) : undefined,
      };
      named.add(key);
      const low = curve.low === null ? null : payload.arrays[curve.low];
      const high = curve.high === null ? null : payload.arrays[curve.high];
      if (curve.points) {
        const names = curve.names === null ? x.map(() => "") : payload.names[curve.names];
        const marker = { size: x.length > 50 ? 4 : 9, color: colour, opacity: 0.75 };
        if (curve.shade !== null) {
          Object.assign(marker, { color: payload.arrays[curve.shade], colorscale: "Viridis", showscale: true });
          marker.colorbar = { title: { text: panel.shade_label, side: "right", font: { size: 11 } }, thickness: 10, len: 0.9 };
        }
        const bars = low ? { type: "data", symmetric: false, array: y.map((v, i) => reach(v, high[i])), arrayminus: y.map((v, i) => reach(low[i], v)) } : undefined;
        found.push({ ...base, type: "scatter", mode: "markers", marker, error_y: bars, text: names.map(plain),
          hovertemplate: "%{text}<br>%{x:.4g}, %{y:.4g}<extra></extra>" });
        continue;
      }
      if (low) {
        const edge = { x: at, type: "scatter", mode: "lines", line: { width: 0 }, hoverinfo: "skip", showlegend: false };
        found.push({ ...edge, y: low }, { ...edge, y: high, fill: "tonexty", fillcolor: colour + (colour[0] === "#" ? "30" : "") });
        if (colour[0] !== "#") found[found.length - 1].fillcolor = colour.replace("rgb", "rgba").replace(")", ",0.2)");
      }
      const few = y.filter((one) => one !== null).length <= 12 && !DASH[curve.role];
      found.push({ ...base, type: "scatter", mode: few ? "lines+markers" : "lines", customdata: x,
        line: { color: colour, width: 2, dash: DASH[curve.role] || "solid" },
        hovertemplate: "%{y:.4g} at %{customdata}<extra>" + plain(curve.label) + "</extra>" });
    }
    return found;
  };

  const last = (panel) => Math.max(1, ...panel.curves.flatMap((curve) => payload.arrays[curve.x]));
  const ticks = (panel) => {
    const values = [0];
    for (let power = 1; power <= last(panel); power *= 10) values.push(power);
    return values;
  };
  // a few of each power of ten: words of all nine lie on each other
  const decades = (panel) => {
    const seen = panel.curves.flatMap((curve) => payload.arrays[curve.y]).filter((one) => one > 0);
    const [low, high] = [Math.floor(Math.log10(Math.min(...seen))), Math.ceil(Math.log10(Math.max(...seen)))];
    const values = [];
    for (let power = low; power <= high; power += 1) for (const digit of high - low > 3 ? [1] : [1, 2, 5]) values.push(Number((digit * 10 ** power).toPrecision(1)));
    return values;
  };

  const layout = (panel, scale) => {
    const axis = { gridcolor: ink("--line"), zeroline: false, automargin: true, linecolor: ink("--line") };
    const xaxis = { ...axis, title: { text: plain(panel.x_label), standoff: 8 } };
    if (panel.x_scale !== "none") {
      if (scale === "log") Object.assign(xaxis, { tickvals: ticks(panel).map((one) => place(one, "log")), ticktext: ticks(panel).map(String),
        range: [-0.01 * place(last(panel), "log"), 1.02 * place(last(panel), "log")] });
      if (panel.toggles) xaxis.title.text = scale === "log" ? "step (updates, log(1 + step))" : "step (updates)";
    }
    if (panel.x_names.length) Object.assign(xaxis, { tickvals: panel.x_names.map((_, i) => i), ticktext: panel.x_names.map((one) => plain(one).replace(/\n/g, "<br>")) });
    const yaxis = { ...axis, title: { text: plain(panel.y_label), standoff: 6 }, type: panel.y_scale === "log10" ? "log" : "linear" };
    if (panel.y_range) yaxis.range = panel.y_range;
    if (panel.y_scale === "log10") Object.assign(yaxis, { tickvals: decades(panel), ticktext: decades(panel).map(String) });
    const note = panel.note ? [{ text: plain(panel.note).replace(/\n/g, "<br>"), xref: "paper", yref: "paper", x: 0.01, y: 0.99,
      xanchor: "left", yanchor: "top", showarrow: false, align: "left", font: { size: 12 }, bgcolor: ink("--card"), opacity: 0.9 }] : [];
    return {
      paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", font: { color: ink("--ink"), size: narrow() ? 11 : 12, family: "system-ui, sans-serif" },
      margin: { l: 55, r: 10, t: 34, b: 45 }, xaxis, yaxis, annotations: note, hovermode: "closest",
      title: panel.title ? { text: plain(panel.title), font: { size: 13 }, x: 0.01, xanchor: "left", y: 0.97, yanchor: "top" } : undefined,
      legend: { orientation: "h", y: narrow() ? -0.3 : -0.22, yanchor: "top", x: 0, font: { size: 11 } }, dragmode: narrow() ? false : "zoom",
      modebar: { bgcolor: "rgba(0,0,0,0)", color: ink("--soft"), activecolor: ink("--accent") },
    };
  };

  const CONFIG = { responsive: true, displaylogo: false, modeBarButtonsToRemove: ["lasso2d", "select2d"] };
  const drawn = new Map();

  const show = (figure) => {
    const drawing = payload.drawings[figure.dataset.drawing];
    const state = drawn.get(figure);
    const panels = drawing.slider ? [drawing.panels[state.at]] : drawing.panels;
    figure.querySelectorAll(".plot").forEach((where, number) => {
      const panel = panels[number];
      const scale = panel.toggles ? state.scale : panel.x_scale;
      Plotly.react(where, traces(panel, scale), layout(panel, scale), CONFIG);
    });
  };

  const slider = (figure, drawing, state) => {
    const input = figure.querySelector("input");
    const said = figure.querySelector("output");
    const tell = () => {
      said.textContent = "step " + drawing.panels[state.at].step;
      input.setAttribute("aria-valuetext", said.textContent);
    };
    input.addEventListener("input", () => { state.at = Number(input.value); tell(); show(figure); });
    tell();
  };

  const cells = (drawing) => {
    // words that begin as a formula does are no formula
    const words = (one) => (typeof one === "string" && /^[=+\-@\t\r]/.test(one) ? "'" + one : one);
    const quoted = (one) => '"' + String(one === null || one === undefined ? "" : words(one)).replace(/"/g, '""') + '"';
    const rows = [["panel", "step", "curve", "role", "run", "x", "y", "low", "high", "shade", "name"]];
    for (const panel of drawing.panels) for (const curve of panel.curves) {
      const of = (name, at) => (curve[name] === null ? "" : payload.arrays[curve[name]][at]);
      payload.arrays[curve.x].forEach((x, at) => rows.push([panel.title, panel.step, curve.label, curve.role, curve.run, x, of("y", at),
        of("low", at), of("high", at), of("shade", at), curve.names === null ? "" : payload.names[curve.names][at]]));
    }
    return rows.map((row) => row.map(quoted).join(",")).join("\n");
  };

  const start = (figure) => {
    const drawing = payload.drawings[figure.dataset.drawing];
    const state = { at: drawing.panels.length - 1, scale: "log" };
    drawn.set(figure, state);
    if (drawing.slider) slider(figure, drawing, state);
    figure.querySelectorAll("button").forEach((button) => button.addEventListener("click", () => {
      if (button.dataset.does === "scale") {
        state.scale = state.scale === "log" ? "linear" : "log";
        button.setAttribute("aria-pressed", String(state.scale === "linear"));
        show(figure);
      } else {
        const link = document.createElement("a");
        link.href = URL.createObjectURL(new Blob([cells(drawing)], { type: "text/csv" }));
        link.download = drawing.name + ".csv";
        link.click();
        setTimeout(() => URL.revokeObjectURL(link.href), 1000);
      }
    }));
    show(figure);
  };

  document.getElementById("theme").addEventListener("click", () => {
    root.dataset.theme = dark() ? "light" : "dark";
    drawn.forEach((_, figure) => show(figure));
  });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => drawn.forEach((_, figure) => show(figure)));

  const figures = [...document.querySelectorAll("figure[data-drawing]")];
  try {
    await load();
  } catch (error) {
    figures.forEach((figure) => { figure.querySelector(".plot").textContent = "The plots need a browser of 2023 or later. The numbers can still be saved."; });
  }
  if (window.Plotly) {
    const seen = new IntersectionObserver((entries) => entries.forEach((entry) => {
      if (entry.isIntersecting && !drawn.has(entry.target)) start(entry.target);
    }), { rootMargin: "600px" });
    figures.forEach((figure) => seen.observe(figure));
    window.addEventListener("beforeprint", () => figures.forEach((figure) => drawn.has(figure) || start(figure)));
  }
  root.dataset.ready = "yes";
})();
