// Requests to the gateway, their errors, and jobs.

import { h, marked } from "./dom.js";

/** What the gateway refused, in Chroma's shape. `status` is 0 if it does not answer. */
export class ApiError extends Error {
  constructor(status, error, message, hint) {
    super(message);
    Object.assign(this, { status, error, hint });
  }
}

/** Dispatches `signed-out` when the gateway says that the session has ended. */
export const events = new EventTarget();

/**
 * Ask the gateway. Returns the JSON of the answer, null if it has none. Throws ApiError, or AbortError when `signal` aborts.
 *
 * `path`: a path of this gateway; encode its parts with `at`. `body`: sent as JSON; a Blob is sent as it is.
 * `query`: an object of parameters, null and undefined are left out.
 */
export async function request(method, path, { body, query, signal, headers = {} } = {}) {
  const raw = body instanceof Blob;
  const options = { method, signal, headers: { ...headers }, credentials: "same-origin", cache: "no-store" };
  if (body !== undefined) {
    options.body = raw ? body : JSON.stringify(body);
    options.headers["Content-Type"] ??= raw ? "application/octet-stream" : "application/json";
  }
  let answer, text;
  try {
    answer = await fetch(path + parameters(query), options);
    text = await answer.text();
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ApiError(0, "Unavailable", "the gateway does not answer", "is it running, and can it be reached?");
  }
  if (!answer.ok) throw errorOf(answer.status, text);
  if (!text) return null;
  try {
    return JSON.parse(text);
  } catch {
    throw new ApiError(answer.status, "InvalidAnswer", "the gateway's answer is not JSON", "is a proxy in front?");
  }
}

export const get = (path, options) => request("GET", path, options);
export const post = (path, body, options) => request("POST", path, { body, ...options });
export const put = (path, body, options) => request("PUT", path, { body, ...options });
export const patch = (path, body, options) => request("PATCH", path, { body, ...options });
export const del = (path, options) => request("DELETE", path, options);

/** A path with its parts encoded: at`/admin/jobs/${id}/events`. */
export function at(strings, ...parts) {
  return String.raw({ raw: strings }, ...parts.map((each) => encodeURIComponent(each)));
}

function parameters(query) {
  const given = Object.entries(query ?? {}).filter(([, value]) => value !== null && value !== undefined);
  return given.length ? `?${new URLSearchParams(given)}` : "";
}

/** The ApiError of an answer that is not 2xx. */
export function errorOf(status, text) {
  let body = {};
  try {
    body = JSON.parse(text) ?? {};
  } catch {
    // a proxy's page
  }
  if (status === 401) events.dispatchEvent(new Event("signed-out"));
  const message = typeof body.message === "string" ? body.message : `the gateway answered with status ${status}`;
  return new ApiError(status, body.error ?? "Error", message, body.hint);
}

/** What failed and what to do, as an element. `again`: a function for a button "Try again". */
export function errorBox(error, again) {
  return h(
    "div",
    { class: "box bad", role: "alert" },
    h("p", { class: "box-title" }, marked(sentence(error.message || String(error)))),
    error.hint && h("p", {}, marked(sentence(error.hint))),
    again && h("button", { class: "button", type: "button", onclick: again }, "Try again"),
  );
}

/** "the store is away" → "The store is away." */
export function sentence(text) {
  const whole = String(text).trim();
  // The name of a command, an address or a setting stays as it is.
  const begin = /^[a-z]+[ ,]/.test(whole) ? whole.charAt(0).toUpperCase() + whole.slice(1) : whole;
  return begin + (/[.!?:…]$/.test(whole) ? "" : ".");
}

/**
 * Follow a job until it ends. Returns its last state: `state` is succeeded, failed or cancelled. `onChange` gets each
 * state. Throws ApiError, or AbortError when `signal` aborts; the job goes on then.
 */
export async function follow(job, { signal, onChange = () => {} } = {}) {
  onChange(job);
  while (job.state === "running") {
    await pause(job.kind === "train" ? 600 : 300, signal);
    job = await get(at`/admin/jobs/${job.id}`, { signal });
    onChange(job);
  }
  return job;
}

/** The result of a job that has ended. Throws ApiError if it failed or was cancelled. */
export function resultOf(job) {
  if (job.state === "succeeded") return job.result;
  const { error = "Error", message = `the ${job.kind} was ${job.state}`, hint } = job.error ?? {};
  throw new ApiError(500, error, message, hint);
}

/** Wait for some milliseconds. Throws AbortError when `signal` aborts. */
export function pause(milliseconds, signal) {
  return new Promise((resolve, reject) => {
    const stop = () => (clearTimeout(timer), reject(new DOMException("left", "AbortError")));
    const timer = setTimeout(() => (signal?.removeEventListener("abort", stop), resolve()), milliseconds);
    if (signal?.aborted) stop();
    signal?.addEventListener("abort", stop, { once: true });
  });
}
