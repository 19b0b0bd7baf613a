// Notices: what failed, why, and what to do next.

import { byId, el } from './dom.js'
import { nextStep, say } from './words.js'

const MOST = 3

/** What failed before is of no matter once the next thing is tried. */
export function clearErrors() {
  byId('notices').replaceChildren()
}

export function showError(error) {
  if (error?.name === 'AbortError') return
  const title = error.code ? `${error.name} (${say('code')} ${error.code})` : say('fault')
  const notice = el('div', { class: 'notice' },
    el('div', {},
      el('strong', {}, title),
      el('p', {}, error.message),
      nextStep(error) && el('p', {}, nextStep(error)),
      error.requestId && el('p', { class: 'hint' }, `${say('request')} `, el('code', {}, error.requestId))),
    el('button', { type: 'button', onclick: () => notice.remove() }, say('dismiss')))
  const notices = byId('notices')
  for (const old of notices.children) if (old.querySelector('strong').textContent === title) old.remove()
  notices.append(notice)
  while (notices.children.length > MOST) notices.firstChild.remove()
}
