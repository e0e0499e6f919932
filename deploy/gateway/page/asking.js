// A question is asked by one tab, though several may show it before the first token of its answer has come.

/**
 * Wait until this tab may ask the question of this `key`: at once, or when the tab that is asking it has the first token,
 * takes the question back, or is closed. Returns what to call when that is true of this tab.
 *
 * Browsers give locks to secure origins alone; elsewhere nothing is waited for.
 */
export function turnToAsk(key, signal) {
  return new Promise((resolve, reject) => {
    if (!navigator.locks) return resolve(() => {});
    const held = () => new Promise((release) => resolve(release));
    navigator.locks.request(`trtstream.question.${key}`, { signal }, held).catch(reject);
  });
}
