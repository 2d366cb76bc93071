// The production check: what people who run Chroma are told to do, looked up on the live system.

import { ApiError, get } from "../api.js";
import { h, replace } from "../dom.js";

export const title = "Check";

export async function mount({ root, signal }) {
  try {
    await get("/admin/check", { signal });
  } catch (error) {
    if (!(error instanceof ApiError) || error.status !== 404) throw error;
    replace(root, h("p", { class: "card empty" }, "This gateway has no production check."));
  }
}
