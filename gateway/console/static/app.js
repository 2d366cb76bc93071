// The shell: sign-in, navigation, and one page at a time.
//
// A page is a module pages/<name>.js whose name is in PAGES. Its address is #/<name>/<more>. It exports
//
//   title         what stands above the page, and in the browser's tab
//   mount(page)   builds the page; may be async. What it throws is shown, with a button to try again
//
// `page` has
//
//   root          the element to fill, which is empty. The title stands above it
//   params        the parts of the address behind the name, decoded: #/collections/a%2Fb/c → ["a/b", "c"]
//   query         URLSearchParams of what follows "?" in the address
//   session       { name, role, user_id }: role is "reader", "writer" or "admin"
//   mayAct        whether the role is admin: others get no buttons that change something
//   live          the overview: page.live.on((overview, state) => …, page.signal), page.live.newest
//   signal        aborts when the page is left: give it to requests and listeners
//   title(text)   change the title
//   say(text)     tell people who use a screen reader
//   notify(text, tone)   show a short notice: tone is "ok", "warn" or "bad"
//   address(...parts)    the address of a page: page.address("collections", id) → "#/collections/…"
//   go(...parts)  go there
//
// A page is built anew for each address. The other modules: dom.js (elements, numbers for people), api.js (requests,
// errors, jobs), dialog.js (questions, with a text to type for what is dangerous), live.js (the overview).

import { ApiError, errorBox, events, get, request } from "./api.js";
import { h, replace, setText } from "./dom.js";
import { Live } from "./live.js";

const PAGES = ["overview", "timeline", "collections", "documents", "jobs", "check"];
const CONNECTION = { live: "Live", connecting: "Connecting…", away: "The gateway does not answer" };
const NOTICE_MS = 6000;

const byId = (id) => document.getElementById(id);
const shell = byId("shell"), signIn = byId("sign-in"), main = byId("main"), root = byId("page");
const heading = byId("title"), key = byId("key"), problem = byId("sign-in-error");

let session = null, failures = 0;
let leaving = new AbortController();
const live = new Live(() => showSignIn("The session has ended. Sign in again."));

// ---------------------------------------------------------------------- pages

function address(...parts) {
  return `#/${parts.map(encodeURIComponent).join("/")}`;
}

function parse(hash) {
  const [path, query = ""] = hash.replace(/^#\/?/, "").split("?", 2);
  const [name, ...params] = path.split("/").map(decoded);
  return { name: PAGES.includes(name) ? name : PAGES[0], params: params.filter(Boolean), query: new URLSearchParams(query) };
}

function decoded(part) {
  try {
    return decodeURIComponent(part);
  } catch {
    return part;
  }
}

function setTitle(text) {
  setText(heading, text);
  document.title = `${text} · Chroma Gateway`;
}

async function show({ focus }) {
  leaving.abort();
  leaving = new AbortController();
  const { signal } = leaving;
  const { name, params, query } = parse(location.hash);
  for (const link of document.querySelectorAll(".nav a")) {
    if (link.getAttribute("href") === `#/${name}`) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  // Each page gets an element of its own: what an earlier one still adds to its own is not seen.
  const own = h("div", { class: `page page-${name}` });
  replace(root, own);
  main.setAttribute("aria-busy", "true");
  try {
    const module = await load(name);
    if (signal.aborted) return;
    setTitle(module.title);
    window.scrollTo(0, 0);
    if (focus) heading.focus();
    await module.mount({
      root: own,
      params,
      query,
      session,
      mayAct: session.role === "admin",
      live,
      signal,
      title: setTitle,
      say,
      notify,
      address,
      go: (...parts) => (location.hash = address(...parts)),
    });
  } catch (error) {
    if (signal.aborted || error.name === "AbortError") return;
    if (!(error instanceof ApiError)) console.error(error);
    replace(own, errorBox(error, () => show({ focus: true })));
  } finally {
    if (!signal.aborted) main.removeAttribute("aria-busy");
  }
}

/** The module of a page. A browser may remember that it could not be loaded, so it is asked for by another name then. */
async function load(name) {
  try {
    return await import(`./pages/${name}.js${failures ? `?again=${failures}` : ""}`);
  } catch (error) {
    if (!(error instanceof TypeError)) throw error;
    failures++;
    throw new ApiError(0, "Unavailable", "the gateway does not answer", "is it running, and can it be reached?");
  }
}

function say(text) {
  const announcer = byId("announcer");
  announcer.textContent = "";
  setTimeout(() => (announcer.textContent = text), 50);
}

function notify(text, tone = "ok") {
  const notice = h("p", { class: `notice ${tone}` }, text);
  byId("notices").append(notice);
  setTimeout(() => notice.remove(), NOTICE_MS);
}

// ---------------------------------------------------------------------- sign-in

function showShell() {
  signIn.hidden = true;
  shell.hidden = false;
  setText(byId("who"), `${session.name} · ${session.role}`);
  live.start();
  show({ focus: false });
}

function showSignIn(message = "") {
  if (!signIn.hidden && !message) return;
  leaving.abort();
  live.stop();
  session = null;
  shell.hidden = true;
  signIn.hidden = false;
  root.replaceChildren();
  document.querySelectorAll("dialog").forEach((each) => each.close());
  document.title = "Sign in · Chroma Gateway";
  setText(problem, message);
  key.value = "";
  key.focus();
}

byId("sign-in-form").addEventListener("submit", async (event) => {
  event.preventDefault();
  const button = event.target.querySelector("button");
  button.disabled = true;
  setText(problem, "");
  try {
    session = await request("POST", "/console/session", { body: { key: key.value.trim() } });
    key.value = "";
    showShell();
    heading.focus();
  } catch (error) {
    setText(problem, error.status === 401 ? "This key is not known here." : `${error.message}. ${error.hint ?? ""}`);
    key.focus();
    key.select();
  } finally {
    button.disabled = false;
  }
});

byId("sign-out").addEventListener("click", async () => {
  try {
    await request("DELETE", "/console/session");
    showSignIn("");
  } catch (error) {
    notify(`You are still signed in: ${error.message}.`, "bad");
  }
});

byId("skip").addEventListener("click", (event) => {
  event.preventDefault();
  (shell.hidden ? key : main).focus();
});

events.addEventListener("signed-out", () => session && showSignIn("The session has ended. Sign in again."));
window.addEventListener("hashchange", () => session && show({ focus: true }));

const connection = byId("connection");
live.onState = (state) => {
  setText(connection, CONNECTION[state]);
  connection.dataset.state = state;
};
live.onState("connecting");

async function begin() {
  try {
    const found = await get("/console/session");
    if (!found.role) return showSignIn();
    session = found;
    showShell();
  } catch (error) {
    signIn.hidden = true;
    shell.hidden = false;
    setTitle("Chroma Gateway");
    replace(root, errorBox(error, begin));
  }
}
begin();
