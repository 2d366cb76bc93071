// The avatars, whose documents are trained into collections.

import { at, get } from "../api.js";
import { h, replace } from "../dom.js";

export const title = "Documents";

export async function mount({ root, session, signal }) {
  const { avatars } = await get(at`/admin/users/${session.user_id}/avatars`, { signal });
  if (!avatars.length) return void replace(root, h("p", { class: "card empty" }, "There is no avatar with documents yet."));
  replace(root, h("ul", { class: "card stack" }, avatars.map((each) => h("li", {}, each))));
}
