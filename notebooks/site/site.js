// Search over all pages, the dark theme, the menu of narrow windows, and the mark in the table of contents.
"use strict";
const $ = (selector) => document.querySelector(selector);
const root = document.documentElement;

// --- theme: the system's, until the button says otherwise ---
const system = matchMedia("(prefers-color-scheme: dark)");
const isDark = () => (root.dataset.theme ? root.dataset.theme === "dark" : system.matches);
const showTheme = () => $("#theme").setAttribute("aria-pressed", isDark());
$("#theme").addEventListener("click", () => {
  root.dataset.theme = isDark() ? "light" : "dark";
  try { localStorage.setItem("theme", root.dataset.theme); } catch { /* no storage: for this page only */ }
  showTheme();
});
system.addEventListener("change", showTheme);
showTheme();

// --- menu ---
const openMenu = (open) => {
  $("#contents").classList.toggle("open", open);
  $("#menu").setAttribute("aria-expanded", open);
};
$("#menu").addEventListener("click", () => openMenu(!$("#contents").classList.contains("open")));
$("#contents").addEventListener("click", (event) => event.target.closest("a") && openMenu(false));

// --- search: every word must occur; a hit in a heading counts more ---
const input = $("#search"), results = $("#results"), list = $("#results ul"), status = $("#results p");
const MOST = 30, AROUND = 70; // results shown; characters of text beside a hit
const simple = (text) => text.normalize("NFD").replace(/\p{M}/gu, "").toLowerCase();
let loading;
const entries = () => (loading ??= new Promise((resolve, reject) => {
  const script = Object.assign(document.createElement("script"), { src: "assets/search.js", onerror: reject });
  script.onload = () => {
    for (const entry of window.searchEntries) {
      Object.assign(entry, { head: simple(`${entry.heading} ${entry.title}`), all: simple(entry.text) });
    }
    resolve(window.searchEntries);
  };
  document.head.append(script);
}));
const score = (entry, words) => {
  let sum = 0;
  for (const word of words) {
    const inHead = entry.head.includes(word), inText = entry.all.split(word, 6).length - 1;
    if (!inHead && !inText) return 0;
    sum += (inHead ? 10 : 0) + inText;
  }
  return sum;
};
const element = (tag, properties, ...children) => {
  const made = Object.assign(document.createElement(tag), properties);
  made.append(...children);
  return made;
};
const snippet = (entry, words) => {
  const first = Math.max(0, Math.min(...words.map((word) => entry.all.indexOf(word)).filter((at) => at >= 0)));
  const start = Number.isFinite(first) ? Math.max(0, first - AROUND) : 0;
  const text = entry.text.normalize("NFC").slice(start, start + 2 * AROUND + 40).replace(start ? /^\S*\s/ : "", "");
  const pattern = new RegExp(`(${words.map((word) => word.replace(/[.*+?^${}()|[\]\\]/g, "\\$&")).join("|")})`, "gi");
  const pieces = text.split(pattern).map((piece, i) => (i % 2 ? element("mark", { textContent: piece }) : piece));
  return element("span", {}, start ? "… " : "", ...pieces, " …");
};
const find = async () => {
  const words = simple(input.value).split(/\s+/).filter(Boolean);
  const asked = input.value;
  results.hidden = !words.length;
  if (!words.length) return;
  const scored = (await entries()).map((entry) => [score(entry, words), entry]).filter(([points]) => points);
  if (asked !== input.value) return; // more was typed meanwhile
  scored.sort((a, b) => b[0] - a[0]);
  const count = scored.length === 1 ? "1 place" : `${scored.length} places`;
  status.textContent = scored.length ? count : "Nothing found: try fewer or shorter words.";
  list.replaceChildren(...scored.slice(0, MOST).map(([, entry]) => element("li", {},
    element("a", { href: `${entry.page}${entry.anchor && `#${entry.anchor}`}` },
      element("small", { textContent: entry.title }), element("strong", { textContent: entry.heading || entry.title }),
      element("small", {}, snippet(entry, words))))));
};
input.addEventListener("input", find);
input.addEventListener("focus", find);
results.addEventListener("click", (event) => (results.hidden = Boolean(event.target.closest("a"))));
document.addEventListener("click", (event) => event.target.closest(".search") || (results.hidden = true));
document.addEventListener("keydown", (event) => {
  const typing = event.target.closest("input, select, textarea");
  if (event.key === "/" && !typing) { event.preventDefault(); input.focus(); }
  if (event.key === "Escape") {
    if (event.target.closest("#results")) input.focus();
    results.hidden = true;
    openMenu(false);
  }
  if (results.hidden || !event.target.closest(".search") || !/^Arrow(Up|Down)$/.test(event.key)) return;
  event.preventDefault(); // the arrows walk from the field through the results
  const stops = [input, ...list.querySelectorAll("a")];
  stops[stops.indexOf(document.activeElement) + (event.key === "ArrowDown" ? 1 : -1)]?.focus();
});

// --- where one is reading; boxes that scroll can be scrolled by keyboard ---
const links = [...document.querySelectorAll("#toc a")];
const heads = links.map((link) => document.getElementById(decodeURIComponent(link.hash.slice(1))));
const markPlace = () => {
  const here = heads.findLastIndex((head) => head.getBoundingClientRect().top < innerHeight / 4);
  links.forEach((link, i) => (i === here ? link.setAttribute("aria-current", "true") : link.removeAttribute("aria-current")));
  const side = $("#contents"), at = (links[here]?.offsetTop ?? 0) - side.scrollTop;
  if (at < 0 || at > side.clientHeight - 60) side.scrollTop += at - side.clientHeight / 3;
};
addEventListener("scroll", () => requestAnimationFrame(markPlace), { passive: true });
const reach = () => document.querySelectorAll(".scroll, .formula, pre, .output").forEach((box) => {
  if (box.scrollWidth > box.clientWidth + 1) box.tabIndex = 0;
});
document.addEventListener("click", (event) => event.target.closest(".output img")?.classList.toggle("large")); // on a phone
addEventListener("load", () => { // widgets.js has drawn what it can by now
  markPlace();
  reach();
});
