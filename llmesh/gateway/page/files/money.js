// Earnings and spending: how the account stands, and fees by day.

import { barChart } from './chart.js'
import { byId, el, facts, mesh } from './dom.js'
import { say } from './words.js'

const DAYS = 14

export function showMoney({ wallet, walletError }) {
  const place = byId('wallet')
  if (walletError) return place.replaceChildren(el('p', { class: 'hint' }, say('noWallet')))
  if (!wallet) return undefined
  const days = byDay(wallet)
  const [earned, spent] = [1, 2].map((side) => mesh(days.reduce((sum, day) => sum + day[side], 0)))
  const summary = say('inDays', { earned, spent })
  return place.replaceChildren(
    el('dl', { class: 'tiles' }, ...facts([
      [say('balance'), mesh(wallet.balance)],
      [say('stake'), mesh(wallet.stake)],
      [say('claimed'), mesh(wallet.earned)],
      [say('held'), wallet.unknown ? mesh(wallet.unknown) : ''],
      [say('channels'), wallet.channels.length],
    ], true)),
    ...(days.some(([, ...fees]) => fees.some((fee) => fee > 0)) ? chart(summary, days, place.clientWidth) : []),
    el('p', { class: 'hint' }, summary))
}

function chart(summary, days, width) {
  const legend = [['a', 'earned'], ['b', 'spent']].map(([kind, word]) => el('span', { class: kind }, say(word)))
  return [el('div', { class: 'legend' }, ...legend), barChart(summary, days, width)]
}

/** [day, earned, spent] of the last days, today (UTC) last. */
function byDay({ earnings, spending }) {
  const days = Array.from({ length: DAYS }, (_, back) =>
    new Date(Date.now() - 86_400_000 * (DAYS - 1 - back)).toISOString().slice(0, 10))
  const sum = (rows, day) => rows.filter((row) => row.day === day).reduce((total, { fees }) => total + fees, 0)
  return days.map((day) => [day, sum(earnings, day), sum(spending, day)])
}
