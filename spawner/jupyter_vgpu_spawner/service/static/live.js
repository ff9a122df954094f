// What changes by itself follows; without JavaScript a reload shows the same.
const live = document.getElementById("vgpu-live");
// A page that is told of in its tab asks on, seldom, while another is looked at.
const SHOWN_MS = 2000;
const HIDDEN_MS = 20000;
const isWanted = () => document.visibilityState === "visible" || live.querySelector("[data-title]") !== null;
const nameOf = (element) => element.getAttribute("aria-label") ?? element.textContent;

const plainTitle = document.title;

function nameTab() {
  document.title = live.querySelector("[data-title]")?.dataset.title ?? plainTitle;
}

// Who is on a button stays on it.
function replace(element, content) {
  const held = element.contains(document.activeElement) ? nameOf(document.activeElement) : null;
  element.replaceChildren(content);
  if (held !== null) {
    [...element.querySelectorAll("a, button")].find((each) => nameOf(each) === held)?.focus();
  }
}

const textOf = (element) => element.textContent.replace(/\s+/g, " ").trim();
const slicesOf = (element) => [...element.querySelectorAll("[name=slice]")].map((field) => field.value).join(" ");
const isSame = (one, other) => textOf(one) === textOf(other) && slicesOf(one) === slicesOf(other);

// Each user's servers come in a template of their own.
function showServers(content) {
  const told = new Map();
  for (const each of content.querySelectorAll("template[data-servers]")) {
    told.set(each.dataset.servers, each.content);
    each.remove();
  }
  for (const cell of document.querySelectorAll("td[data-servers]")) {
    const content = told.get(cell.dataset.servers);
    if (content && !isSame(content, cell)) {
      replace(cell, content);
    }
  }
}

// What is read aloud is not read again while it says the same.
function show(text) {
  const next = document.createElement("template");
  next.innerHTML = text;
  showServers(next.content);
  if (live.hasAttribute("aria-live") && textOf(next.content) === textOf(live)) {
    return;
  }
  const before = live.querySelector("[data-go]");
  replace(live, next.content);
  nameTab();
  const there = live.querySelector("[data-go]");
  if (there && !before) {
    location.assign(there.dataset.go);
  }
}

async function refresh() {
  if (isWanted()) {
    try {
      // where the login is over the answer is a way to it, which is the page's to go, not this look's
      const users = [...document.querySelectorAll("td[data-servers]")].map((cell) => ["user", cell.dataset.servers]);
      const answer = await fetch(live.dataset.url, {
        headers: { "X-XSRFToken": live.dataset.xsrf },
        redirect: "error",
        ...(users.length > 0 && { method: "POST", body: new URLSearchParams(users) }),
      });
      if (answer.ok) {
        show(await answer.text());
      }
    } catch {
      // the hub is away for a moment; the next look tells
    }
  }
  again();
}

let timer = 0;
function again() {
  clearTimeout(timer);
  timer = setTimeout(refresh, document.visibilityState === "visible" ? SHOWN_MS : HIDDEN_MS);
}

// What can't be taken back is asked about first.
document.addEventListener("submit", (event) => {
  const question = event.target.dataset.confirm;
  if (question && !confirm(question)) {
    event.preventDefault();
  }
});
document.addEventListener("visibilitychange", again);
nameTab();
again();
