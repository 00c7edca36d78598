// Talks to the agent. One request per channel: a newer one cancels the older, so that a slow answer never overwrites a later.

export class APIError extends Error {
  constructor(message, remedy, status) {
    super(message);
    this.remedy = remedy || '';
    this.status = status || 0;
  }
}

const channels = new Map();
let token = null;
try { token = sessionStorage.getItem('stoker-token'); } catch { /* asked for again at the next page load */ }

export function setToken(t) {
  token = t;
  try { sessionStorage.setItem('stoker-token', t); } catch { /* as above */ }
}

export function hasToken() { return token !== null; }

/** params may be URLSearchParams or pairs; the answer is the Response, already known to be good. */
export async function request(path, params, { channel, signal } = {}) {
  if (channel) {
    channels.get(channel)?.abort();
    const c = new AbortController();
    channels.set(channel, c);
    signal = c.signal;
  }
  const url = params ? path + '?' + new URLSearchParams(params) : path;
  let res;
  try {
    res = await fetch(url, { signal, headers: token ? { Authorization: 'Bearer ' + token } : {}, credentials: 'omit' });
  } catch (err) {
    if (err.name === 'AbortError') throw err;
    throw new APIError('The agent does not answer.', 'Is stoker running? On its machine: systemctl status stoker, or stoker doctor.');
  }
  if (!res.ok && !(path === '/healthz' && res.status === 503)) {
    let body = {};
    try { body = await res.json(); } catch { /* an answer that is not ours, from a proxy perhaps */ }
    throw new APIError(body.error || `The agent answered ${res.status}.`, body.remedy, res.status);
  }
  return res;
}

export async function get(path, params, options) {
  const res = await request(path, params, options);
  return res.json();
}
