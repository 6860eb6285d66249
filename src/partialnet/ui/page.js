// The page: it sends a photograph to the server it came from and shows what the networks answer.

const $ = (id) => document.getElementById(id);
const SVG = "http://www.w3.org/2000/svg";

let networks = [];
let maxUpload = Infinity;
let photo = null; // what the server calls the photograph
let target = null; // name of the class of the maps; null for the predicted one
let heat = ""; // picture of the colours of the maps
let place = { x: 0.5, y: 0.5 }; // shares of the photograph's width and height
// answers to older questions than the last one of their kind are dropped
const asked = { photo: 0, maps: 0, attention: 0 };

/** An element with attributes and children; text is never read as HTML. */
function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children);
  return element;
}

function shape(tag, attributes) {
  const element = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  return element;
}

const percent = (share) => {
  if (share > 0 && share < 0.001) return "<\u00a00.1\u00a0%";
  if (share < 1 && share > 0.999) return ">\u00a099.9\u00a0%";
  return `${(100 * share).toFixed(1)}\u00a0%`;
};

function complain(sentence) {
  $("error").textContent = sentence ?? "";
  $("error").hidden = !sentence;
}

/** The server's answer; an Error with one sentence otherwise. */
async function ask(path, options) {
  let response;
  try {
    response = await fetch(path, options);
  } catch {
    throw new Error("The server does not answer; is `partialnet ui` still running?");
  }
  const answer = await response.json().catch(() => ({ error: "The server's answer cannot be read." }));
  if (!response.ok || answer.error) throw new Error(answer.error ?? `The server answers ${response.status}.`);
  return answer;
}

/** Ask what may be asked again meanwhile; use the answer if no newer question of its kind was asked. */
async function latest(kind, doing, path, options, use) {
  const number = ++asked[kind];
  $("status").textContent = doing;
  document.body.setAttribute("aria-busy", "true");
  try {
    const answer = await ask(path, options);
    if (number !== asked[kind]) return;
    complain(null);
    use(answer);
  } catch (error) {
    if (number === asked[kind]) complain(error.message);
  } finally {
    if (number === asked[kind]) {
      $("status").textContent = "";
      document.body.removeAttribute("aria-busy");
    }
  }
}

// ---- the networks' cards

function card(network, index) {
  const facts = [`${network.input_size.join("×")} pixels`];
  if (network.architecture !== network.name) facts.unshift(network.architecture);
  if (network.params_m) facts.push(`${network.params_m.toFixed(2)} M parameters`);
  const head = make("div", {}, make("h2", { id: `name-${index}` }, network.name));
  head.append(make("p", { class: "quiet" }, facts.join(" · ")));
  for (const note of network.notes) head.append(make("p", { class: "note" }, note));
  const parts = ["classes", "map", "attention", "spatial", "channel"].map((kind) =>
    make("div", { class: kind, id: `${kind}-${index}` }));
  return make("section", { class: "network", "aria-labelledby": `name-${index}` }, head, ...parts);
}

function fill(kind, index, title, ...children) {
  $(`${kind}-${index}`).replaceChildren(...(children.length ? [make("h3", {}, title), ...children] : []));
}

function showClasses(index, answer) {
  if (answer.error) {
    fill("classes", index, "Classes", make("p", { class: "trouble" }, answer.error));
    return;
  }
  if (!answer.classes.length) {
    fill("classes", index, "Classes");
    return;
  }
  const list = make("ol", { class: "classes" });
  for (const { name, probability } of answer.classes) {
    const bar = make("span", { class: "bar" });
    bar.style.width = `${100 * probability}%`;
    const button = make("button", { type: "button", title: `Map of ${name}` }, bar,
      make("span", { class: "name" }, name), make("span", { class: "share" }, percent(probability)));
    button.dataset.target = name;
    button.addEventListener("click", () => {
      target = target === name ? null : name;
      askMaps();
    });
    list.append(make("li", {}, button));
  }
  fill("classes", index, "Classes", list);
}

/** A colour scale with what its ends and it mean. */
function scale(picture, low, high, meaning) {
  return make("p", { class: "scale" }, make("span", {}, low), make("img", { src: picture, alt: "to" }),
    make("span", {}, high), make("span", {}, meaning));
}

const METHODS = { gradcam: "Grad-CAM", eigencam: "EigenCAM" };

function showMap(index, map) {
  for (const button of document.querySelectorAll(`#classes-${index} button`))
    button.setAttribute("aria-pressed", String(button.dataset.target === map.target));
  const title = "Where it looks";
  if (map.error) {
    fill("map", index, title, make("p", { class: "quiet" }, map.error));
    return;
  }
  const method = METHODS[map.method] ?? map.method;
  const of = map.target === null ? "" : ` of ${map.target} (${percent(map.probability)})`;
  const empty = map.empty ? "; nothing in the photograph speaks for it" : "";
  const caption = `${method}${of}, stage ${map.stage}${empty}`;
  const alt = `Map over the photograph: ${networks[index].name}, ${caption}`;
  fill("map", index, title, make("figure", {}, make("img", { src: map.picture, alt }), make("figcaption", {}, caption)),
    scale(heat, "0", "1", "importance; dark: cropped away"));
}

function showGates(index, gates) {
  const rows = [];
  for (const stage of new Set(gates.spatial.map((gate) => gate.stage))) {
    const own = gates.spatial.filter((gate) => gate.stage === stage);
    const tiles = own.map((gate) => make("figure", {},
      make("img", { src: gate.picture, alt: `stage ${stage}, block ${gate.block}: mean ${gate.mean.toFixed(2)}` }),
      make("figcaption", {}, `block ${gate.block}`)));
    const label = make("div", {}, `stage ${stage}`, make("br"), make("span", { class: "quiet" },
      `${own[0].rows}×${own[0].columns}`));
    rows.push(make("div", { class: "stage" }, label, make("div", { class: "tiles" }, ...tiles)));
  }
  if (rows.length) {
    const { low, high, picture } = gates.spatial_scale;
    rows.push(scale(picture, low.toFixed(2), high.toFixed(2), "weight of a position"));
  }
  fill("spatial", index, "Spatial gates (PAT_sp)", ...rows);

  const histograms = gates.channel.map((gate) => {
    const most = Math.max(...gate.counts);
    const svg = shape("svg", { viewBox: `0 0 ${gate.counts.length} 1`, preserveAspectRatio: "none", role: "img",
      "aria-label": `stage ${gate.stage}, block ${gate.block}: weights of ${gate.channels} channels, ` +
        `mean ${gate.mean.toFixed(2)}` });
    gate.counts.forEach((count, bin) => svg.append(shape("rect",
      { x: bin + 0.08, y: 1 - count / most, width: 0.84, height: count / most })));
    const mean = gate.mean * gate.counts.length;
    svg.append(shape("line", { x1: mean, x2: mean, y1: 0, y2: 1 }));
    return make("figure", {}, svg, make("figcaption", {}, `${gate.stage}.${gate.block}: mean ${gate.mean.toFixed(2)}`));
  });
  const legend = make("p", { class: "quiet" }, "Weights of the channels in each stage.block, from 0 at the left to 1 ",
    "at the right; dashed: the mean.");
  fill("channel", index, "Channel gates (PAT_ch)", ...(histograms.length
    ? [make("div", { class: "histograms" }, ...histograms), legend] : []));
  if (!rows.length && !histograms.length && !networks[index].has.length && !networks[index].notes.length)
    fill("attention", index, "Gates and attention", make("p", { class: "quiet" }, "This network has no gates and no PAT_sf."));
}

function showAttention(index, answer) {
  const title = "Attention from the marked place (PAT_sf)";
  if (answer.error) {
    fill("attention", index, title, make("p", { class: "quiet" }, answer.error));
    return;
  }
  if (!answer.blocks.length) return;
  const blocks = answer.blocks.map((block) => {
    const label = `stage ${block.stage}, block ${block.block}`;
    const heads = block.heads.map((head, number) => make("img",
      { src: head.picture, alt: `head ${number + 1}, at most ${percent(head.max)}`, title: `head ${number + 1}` }));
    return make("figure", {},
      make("img", { src: block.picture, alt: `Attention over the photograph, ${label}, mean of the heads` }),
      make("figcaption", {}, `${label}: max\u00a0${percent(block.max)}`),
      make("div", { class: "heads" }, make("div", { class: "tiles" }, ...heads)));
  });
  const even = [...new Set(answer.blocks.map((block) => percent(block.even)))].join(" or ");
  fill("attention", index, title, make("div", { class: "blocks" }, ...blocks), make("p", { class: "quiet" },
    `Large: mean of the heads, each picture up to its own maximum; even attention would be ${even}. Small: each head.`));
}

// ---- questions

function chosenStage() {
  const choice = document.querySelector("#stages input:checked");
  return choice ? { stage: choice.value } : {};
}

async function send(file) {
  if (file.size > maxUpload) {
    complain(`'${file.name}' has ${Math.ceil(file.size / 2 ** 20)} MB, more than the ${maxUpload / 2 ** 20} MB that ` +
      "this page takes.");
    return;
  }
  let body;
  try {
    body = await file.arrayBuffer(); // sent as a file, one that cannot be read would fail as if the server were gone
  } catch {
    complain(`'${file.name}' cannot be read; it may be a folder, or no longer what it was.`);
    return;
  }
  complain(null);
  const asking = chosenStage();
  const query = new URLSearchParams({ name: file.name.slice(0, 100), ...asking });
  latest("photo", `Looking at ${file.name} …`, `api/photos?${query}`, { method: "POST", body }, (answer) => {
    photo = answer.photo;
    target = null;
    place = { x: 0.5, y: 0.5 };
    $("photo").src = answer.picture;
    $("place").style.setProperty("--ratio", answer.width / answer.height);
    $("photo").alt = `${file.name}, ${answer.width}×${answer.height} pixels`;
    $("chosen").hidden = false;
    answer.networks.forEach((own, index) => {
      showClasses(index, own);
      showMap(index, own.map);
      fill("attention", index, "");
      showGates(index, own.gates);
    });
    document.body.dataset.shown = photo;
    asked.maps++; // an answer that is still on its way is of the photograph before
    if (chosenStage().stage !== asking.stage) askMaps();
    askAttention();
  });
}

/** What was dropped or pasted, which unlike what is chosen may be several files. */
function sendOne(files) {
  if (files.length === 1) send(files[0]);
  else complain(`These are ${files.length} files; the page looks at one photograph at a time.`);
}

function askMaps() {
  if (!photo) return;
  const query = new URLSearchParams(chosenStage());
  if (target !== null) query.set("target", target);
  latest("maps", "Looking …", `api/photos/${photo}/maps?${query}`, {}, (answer) => answer.maps.forEach(
    (map, index) => showMap(index, map)));
}

function askAttention() {
  if (!photo || !networks.some((network) => network.has.includes("attention"))) return;
  $("marker").hidden = false;
  $("marker").style.left = `${100 * place.x}%`;
  $("marker").style.top = `${100 * place.y}%`;
  latest("attention", "Looking …", `api/photos/${photo}/attention?x=${place.x}&y=${place.y}`, {}, (answer) =>
    answer.attention.forEach((own, index) => showAttention(index, own)));
}

function showSpeed(answer) {
  const most = Math.max(...answer.rows.map((row) => row.q3_ms));
  const first = answer.rows[0];
  const body = make("tbody");
  for (const row of answer.rows) {
    const svg = shape("svg", { viewBox: "0 0 100 10", preserveAspectRatio: "none", "aria-hidden": "true" });
    const x = (ms) => (98 * ms) / most;
    svg.append(shape("rect", { x: 0, y: 1, width: x(row.median_ms), height: 8 }),
      shape("line", { x1: x(row.q1_ms), x2: x(row.q3_ms), y1: 5, y2: 5 }));
    const ratio = row === first ? "1" :
      `${row.ratio.toFixed(2)} (${row.ratio_q1.toFixed(2)}–${row.ratio_q3.toFixed(2)})`;
    body.append(make("tr", { class: row.form }, make("th", { scope: "row" }, `${row.network}, ${row.form}`),
      make("td", { class: "number" }, `${row.median_ms.toFixed(2)} (${row.q1_ms.toFixed(2)}–${row.q3_ms.toFixed(2)})`),
      make("td", { class: "number" }, ratio), make("td", { class: "chart" }, svg)));
  }
  const head = make("tr", {}, make("th", { scope: "col" }, "Network"), make("th", { scope: "col", class: "number" },
    "ms for an image"), make("th", { scope: "col", class: "number" }, "÷ the first row"), make("td"));
  const sizes = [...new Set(Object.values(answer.sizes).map((size) => size.join("×")))].join(" and ");
  const threads = answer.device === "cpu" ? ` with ${answer.threads} thread${answer.threads === 1 ? "" : "s"}` : "";
  $("timings").replaceChildren(make("table", {}, make("thead", {}, head), body), make("p", { class: "quiet" },
    `Median and, in brackets, quartiles of ${first.rounds} rounds in which all rows ran in turn: eager PyTorch, ` +
    `float32, ${answer.device}${threads}, one image of ${sizes} pixels at a time. Other programs disturb the times, ` +
    `the ratios less. ${answer.note}`));
}

// ---- what one can do

let own = false; // whether a picture of this page is dragged, which may be dropped elsewhere only
addEventListener("dragstart", () => { own = true; });
addEventListener("dragend", () => { own = false; });
addEventListener("dragover", (event) => {
  if (own) return;
  event.preventDefault();
  document.body.classList.add("dragging");
});
addEventListener("dragleave", (event) => {
  if (!event.relatedTarget) document.body.classList.remove("dragging");
});
addEventListener("drop", (event) => {
  event.preventDefault();
  document.body.classList.remove("dragging");
  if (event.dataTransfer.files.length) sendOne(event.dataTransfer.files);
  else complain("That is no file; save the picture first, then drop it here.");
});
addEventListener("paste", (event) => {
  if (event.clipboardData.files.length) sendOne(event.clipboardData.files);
});
$("file").addEventListener("change", () => {
  if ($("file").files.length) send($("file").files[0]);
  $("file").value = ""; // so that the same file can be chosen again
});

$("place").addEventListener("click", (event) => {
  if (event.detail > 0) { // by the pointer; the keyboard's click leaves the mark where it is
    const box = $("photo").getBoundingClientRect();
    place = { x: (event.clientX - box.left) / box.width, y: (event.clientY - box.top) / box.height };
    for (const axis of ["x", "y"]) place[axis] = Math.min(1, Math.max(0, place[axis]));
  }
  askAttention();
});
$("place").addEventListener("keydown", (event) => {
  const steps = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
  if (!(event.key in steps)) return;
  event.preventDefault();
  const [across, down] = steps[event.key];
  const step = event.shiftKey ? 0.01 : 0.05;
  place = { x: Math.min(1, Math.max(0, place.x + across * step)), y: Math.min(1, Math.max(0, place.y + down * step)) };
  askAttention();
});

$("measure").addEventListener("click", async () => {
  if ($("measure").getAttribute("aria-disabled") === "true") return;
  $("measure").setAttribute("aria-disabled", "true"); // which unlike disabled leaves the keyboard's focus here
  $("timings").replaceChildren(make("p", { class: "quiet", role: "status" }, "Measuring, some seconds …"));
  try {
    showSpeed(await ask("api/speed", { method: "POST" }));
  } catch (error) {
    $("timings").replaceChildren(make("p", { class: "trouble", role: "alert" }, error.message));
  }
  $("measure").setAttribute("aria-disabled", "false");
});

// ---- start

try {
  const answer = await ask("api/networks");
  networks = answer.networks;
  maxUpload = answer.max_upload;
  heat = answer.heat;
  $("networks").replaceChildren(...networks.map(card));
  const count = Math.max(0, ...networks.flatMap((network) => network.stages));
  const choices = Array.from({ length: count }, (_, index) => {
    const input = make("input", { type: "radio", name: "stage", value: index + 1 });
    input.checked = index + 1 === count;
    input.addEventListener("change", askMaps);
    return make("label", {}, input, String(index + 1));
  });
  document.querySelector("#stages .choices").replaceChildren(...choices);
  $("stages").hidden = count < 2;
  const attends = networks.some((network) => network.has.includes("attention"));
  $("place").setAttribute("aria-disabled", String(!attends));
  $("hint").textContent = attends
    ? "Click, or move the mark with the arrow keys, to see PAT_sf's attention from there. Choose a class to see its map."
    : "Choose a class to see its map.";
  document.body.dataset.ready = "yes";
} catch (error) {
  complain(error.message);
}
