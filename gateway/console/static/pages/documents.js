// Documents: the avatars; the folders of one, with uploads, flags and training.

import { ApiError, at, errorBox, follow, get, patch, post, request, resultOf } from "../api.js";
import { confirm } from "../dialog.js";
import { bytes, h, number, replace, setText, timeAgo } from "../dom.js";
import { progressBar, trainingResult } from "../jobview.js";
import { Uploads, documentPath, filesOf, folderPath } from "../uploads.js";

export const title = "Documents";

const PAGE = 100;
const MOST_AVATARS = 200;
const TYPING_MS = 250;
const ID = "[A-Za-z0-9]([A-Za-z0-9._\\-]{0,126}[A-Za-z0-9])?";

const FOLDERS = [
  ["vectorstore_data", "Documents", "They become chunks of the avatar's collection when it is trained."],
  ["adapters/training_data", "Training data", "For fine-tuning an adapter."],
  ["adapters", "Adapters", "Adapter files."],
  ["media/audio", "Audio", "Audio."],
  ["media/original/video", "Original video", "Video as it was recorded."],
  ["media/original/text", "Original text", "Text as it was written."],
  ["media/original/audio", "Original audio", "Audio as it was recorded."],
  ["media/original/images", "Original images", "Images as they were made."],
];
const FLAGGED = ["vectorstore_data", "adapters/training_data"];

export async function mount(page) {
  const [avatar, folder = FOLDERS[0][0]] = page.params;
  if (!avatar) return mountAvatars(page);
  if (!FOLDERS.some(([path]) => path === folder)) {
    throw new ApiError(404, "NotFoundError", `an avatar has no folder ${folder}`, "choose one of the avatar's folders");
  }
  return mountFolder(page, avatar, folder);
}

// ---------------------------------------------------------------------- avatars

async function mountAvatars(page) {
  const { root, session, signal } = page;
  const { avatars } = await get(at`/admin/users/${session.user_id}/avatars`, { signal });
  const search = h("input", { type: "search", id: "avatars-search", autocomplete: "off", spellcheck: "false", placeholder: "Part of an ID", oninput: draw });
  const count = h("p", { class: "muted", role: "status" });
  const list = h("ul", { class: "grid" });
  const id = h("input", { id: "avatar-new", required: true, pattern: ID, maxlength: 128, autocomplete: "off", spellcheck: "false", "aria-describedby": "avatar-hint" });
  const create = h(
    "form",
    { class: "card stack", onsubmit: (event) => (event.preventDefault(), page.go("documents", id.value.trim())) },
    h("h2", {}, "New avatar"),
    h("p", { class: "hint", id: "avatar-hint" }, "Letters, digits, “.”, “_” or “-”. An avatar exists once it has a document."),
    h("div", { class: "row" }, h("div", { class: "fills" }, h("label", { class: "visually-hidden", for: "avatar-new" }, "ID of the new avatar"), id), h("button", { class: "button primary", type: "submit" }, "Open")),
  );
  replace(
    root,
    avatars.length > 12 && h("div", { class: "narrow field" }, h("label", { for: "avatars-search" }, "Avatar"), search),
    count,
    list,
    page.mayAct && create,
  );
  draw();

  function draw() {
    const wanted = search.value.trim().toLowerCase();
    const found = avatars.filter((each) => each.toLowerCase().includes(wanted));
    replace(
      list,
      found.slice(0, MOST_AVATARS).map((each) => h("li", {}, h("a", { class: "card tile", href: page.address("documents", each) }, each))),
    );
    const more = found.length > MOST_AVATARS ? `, of which ${number(MOST_AVATARS)} are shown` : "";
    const of = found.length < avatars.length ? `${number(found.length)} of ` : "";
    setText(count, avatars.length ? `${of}${number(avatars.length)} ${avatars.length === 1 ? "avatar" : "avatars"}${more}` : "There is no avatar with documents yet.");
  }
}

// ---------------------------------------------------------------------- one folder

async function mountFolder(page, avatar, folder) {
  const { root, session, signal, mayAct } = page;
  const path = folderPath(session.user_id, avatar, folder);
  const [, , meaning] = FOLDERS.find(([each]) => each === folder);
  const isFlagged = FLAGGED.includes(folder);
  page.title(avatar);

  const search = h("input", { type: "search", id: "documents-search", autocomplete: "off", spellcheck: "false", placeholder: "Beginning of a name", oninput: typed });
  const count = h("p", { class: "muted", role: "status" });
  const list = h("ul", { class: "card flush documents", "aria-label": "Documents" });
  const empty = h("p", { class: "card empty", hidden: true });
  const more = h("button", { class: "button", type: "button", hidden: true, onclick: () => load(false) }, "Show more");
  const training = h("div", { class: "stack" });
  const uploads = new Uploads(page, path, () => load(true));
  const all = h("button", { class: "button", type: "button", onclick: () => flagAll(true) }, "Use all");
  const none = h("button", { class: "button", type: "button", onclick: () => flagAll(false) }, "Use none");

  replace(
    root,
    [
      h("nav", { class: "crumbs", "aria-label": "Where this is" }, h("a", { href: page.address("documents") }, "Documents"), h("span", { "aria-hidden": "true" }, " ›")),
      h(
        "nav",
        { class: "tabs", "aria-label": "Folders" },
        FOLDERS.map(([each, label]) => h("a", { href: page.address("documents", avatar, each), "aria-current": each === folder ? "page" : null }, label)),
      ),
      folder === "vectorstore_data" && mayAct && trainCard(),
      training,
      h("p", { class: "muted" }, `${meaning} `, h("code", {}, `${folder}/`)),
      mayAct && dropZone(),
      uploads.element,
      h(
        "div",
        { class: "row between" },
        h("div", { class: "narrow" }, h("label", { class: "visually-hidden", for: "documents-search" }, "Beginning of a name"), search),
        h("div", { class: "row" }, count, isFlagged && mayAct && [all, none]),
      ),
      empty,
      list,
      h("div", {}, more),
      mayAct && folder === "vectorstore_data" && h("div", { class: "row end" }, h("button", { class: "button", type: "button", onclick: deleteAvatar }, "Delete the avatar…")),
    ],
  );

  let next = null, shown = 0, timer = 0, asked = 0;
  signal.addEventListener("abort", () => clearTimeout(timer), { once: true });
  await load(true);

  // -------------------------------------------------- the list

  function typed() {
    clearTimeout(timer);
    timer = setTimeout(() => load(true), TYPING_MS);
  }

  async function load(fromStart) {
    const turn = (asked += 1);
    more.disabled = true;
    try {
      const after = fromStart ? null : next;
      const found = await get(path, { query: { prefix: search.value || null, after, limit: PAGE }, signal });
      if (turn !== asked) return;
      if (fromStart) [shown, next] = [0, null], list.replaceChildren();
      shown += found.documents.length;
      next = found.next;
      list.append(...found.documents.map(documentRow));
      list.hidden = !shown;
      empty.hidden = shown > 0;
      setText(empty, search.value ? "No name begins so." : "There is nothing in this folder yet.");
      showCount();
      more.hidden = next === null;
      all.hidden = none.hidden = !shown;
    } catch (error) {
      if (error.name === "AbortError" || turn !== asked) return;
      if (fromStart && !shown) replace(list, h("li", {}, errorBox(error, () => load(true))));
      else page.notify(error.message, "bad");
    } finally {
      more.disabled = false;
    }
  }

  function showCount() {
    const documents = `${number(shown)} ${shown === 1 ? "document" : "documents"}`;
    setText(count, shown ? `${documents}${next === null ? "" : " and more"}` : "");
  }

  function documentRow(document_) {
    const { name, size_bytes: size, modified_at: at_, used } = document_;
    const where = documentPath(path, name);
    const flag =
      used === null
        ? null
        : h("input", { type: "checkbox", role: "switch", class: "switch", checked: used, disabled: !mayAct, "aria-label": `Use ${name}`, onchange: () => change() });
    const row = h(
      "li",
      { class: "document" },
      flag,
      h("div", { class: "fills" }, h("p", { class: "name" }, name), h("p", { class: "small number" }, bytes(size), " · ", timeAgo(at_))),
      mayAct && h("a", { class: "button quiet", href: where, download: name.split("/").pop(), "aria-label": `Save ${name}` }, "Save"),
      mayAct && h("button", { class: "button quiet", type: "button", "aria-label": `Delete ${name}`, onclick: remove }, "Delete"),
    );

    async function change() {
      const wanted = flag.checked;
      flag.disabled = true;
      try {
        flag.checked = (await patch(where, { used: wanted }, { signal })).used;
        page.say(`${name} is ${flag.checked ? "used" : "not used"}`);
      } catch (error) {
        flag.checked = !wanted;
        if (error.name !== "AbortError") page.notify(error.message, "bad");
      } finally {
        flag.disabled = false;
        if (document.activeElement === document.body) flag.focus();
      }
    }

    async function remove() {
      const body = isFlagged ? ["The next training deletes its chunks."] : ["It cannot be brought back from here."];
      const sure = await confirm({ title: "Delete this document?", body: [h("p", { class: "name" }, name), ...body], action: "Delete", danger: true });
      if (!sure || signal.aborted) return;
      try {
        await request("DELETE", where, { signal });
        row.remove();
        page.notify("The document was deleted.");
        if ((shown -= 1) === 0) await load(true);
        else showCount();
      } catch (error) {
        if (error.name !== "AbortError") page.notify(error.message, "bad");
      }
    }
    return row;
  }

  async function flagAll(used) {
    const sure = await confirm({
      title: used ? "Use every document of this folder?" : "Use no document of this folder?",
      body: [used ? "The next training trains them all." : "The next training deletes all of their chunks."],
      action: used ? "Use all" : "Use none",
    });
    if (!sure || signal.aborted) return;
    try {
      await patch(path, { used }, { signal });
      await load(true);
      page.notify(used ? "All are used." : "None is used.");
    } catch (error) {
      if (error.name !== "AbortError") page.notify(error.message, "bad");
    }
  }

  // -------------------------------------------------- uploads

  function dropZone() {
    const input = h("input", { type: "file", multiple: true, class: "visually-hidden", id: "upload", onchange: () => (uploads.add([...input.files].map((file) => ({ file, name: file.name }))), (input.value = "")) });
    const zone = h("div", { class: "drop" }, input, h("p", {}, "Drop files or folders here, or ", h("label", { class: "button", for: "upload" }, "choose files")));
    const over = (event) => {
      if (!event.dataTransfer?.types.includes("Files")) return;
      event.preventDefault();
      zone.classList.add("over");
    };
    zone.addEventListener("dragenter", over);
    zone.addEventListener("dragover", over);
    zone.addEventListener("dragleave", () => zone.classList.remove("over"));
    zone.addEventListener("drop", async (event) => {
      event.preventDefault();
      zone.classList.remove("over");
      try {
        uploads.add(await filesOf(event.dataTransfer));
      } catch (error) {
        page.notify(`What was dropped cannot be read: ${error.message}`, "bad");
      }
    });
    // A file that is dropped beside the zone would take the place of the console.
    for (const kind of ["dragover", "drop"]) window.addEventListener(kind, (event) => event.preventDefault(), { signal });
    return zone;
  }

  // -------------------------------------------------- training

  function trainCard() {
    const train = h("button", { class: "button primary", type: "button", onclick: () => run({}) }, "Train");
    const dry = h("button", { class: "button", type: "button", onclick: () => run({ dry_run: true }) }, "What would change?");
    const buttons = [train, dry];
    async function run(body) {
      buttons.forEach((each) => (each.disabled = true));
      const bar = progressBar("Training");
      const cancel = h("button", { class: "button", type: "button" }, "Cancel");
      const head = h("h2", {}, body.dry_run ? "What a training would change" : "Training");
      try {
        const job = await post(at`/admin/users/${session.user_id}/avatars/${avatar}/vectorstore/train`, body, { signal });
        cancel.addEventListener("click", () => {
          cancel.disabled = true;
          request("DELETE", at`/admin/jobs/${job.id}`).catch((error) => page.notify(error.message, "bad"));
        });
        replace(training, h("section", { class: "card stack" }, head, bar.element, h("div", {}, cancel)));
        const ended = await follow(job, { signal, onChange: (each) => bar.update(each) });
        const result = resultOf(ended);
        replace(training, h("section", { class: "card stack" }, head, trainingResult(result)));
        page.say(body.dry_run ? "The answer is there." : "The training has ended.");
      } catch (error) {
        if (error.name !== "AbortError") replace(training, errorBox(error));
      } finally {
        buttons.forEach((each) => (each.disabled = false));
      }
    }
    return h(
      "section",
      { class: "card row between" },
      h("p", { class: "fills" }, "Training makes the collection ", h("code", {}, `avatar-${avatar}`), " have exactly the chunks of the documents that are used."),
      h("div", { class: "row" }, dry, train),
    );
  }

  // -------------------------------------------------- the end of an avatar

  async function deleteAvatar() {
    const sure = await confirm({
      title: "Delete this avatar?",
      body: ["All of its documents, media and adapters are deleted, and its collection too. A restore brings back the collection, not the documents."],
      action: "Delete the avatar",
      typed: avatar,
    });
    if (!sure || signal.aborted) return;
    const bar = progressBar("Deletion");
    replace(training, h("section", { class: "card stack" }, h("h2", {}, "Deletion"), bar.element));
    try {
      const job = await request("DELETE", at`/admin/users/${session.user_id}/avatars/${avatar}`, { body: { avatar_id: avatar }, signal });
      resultOf(await follow(job, { signal, onChange: (each) => bar.update(each) }));
      page.notify(`The avatar ${avatar} was deleted.`);
      page.go("documents");
    } catch (error) {
      if (error.name !== "AbortError") replace(training, errorBox(error));
    }
  }
}
