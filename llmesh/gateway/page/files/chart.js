// Small charts: a line over time, and bars by day.

import { el, svg } from './dom.js'

const WIDTH = 300
const HEIGHT = 110
const FLOOR = 94
const HALF = 18 // pixels, of the label of a day

/** `points` are [seconds ago, value]; `span` is how many seconds are shown. */
export function lineChart(title, now, points, span, ago) {
  const most = Math.max(1, ...points.map(([, value]) => value))
  const x = (seconds) => WIDTH * (1 - seconds / span)
  const y = (value) => FLOOR - 80 * (value / most)
  const path = points.map(([seconds, value]) => `${x(seconds).toFixed(1)},${y(value).toFixed(1)}`)
  const drawing = svg('svg', { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: 'img', 'aria-label': `${title}: ${now}` },
    svg('line', { class: 'axis', x1: 0, x2: WIDTH, y1: FLOOR, y2: FLOOR }),
    svg('text', { x: 0, y: HEIGHT - 4 }, ago),
    svg('text', { x: WIDTH, y: 10, 'text-anchor': 'end' }, short(Math.round(most))))
  if (path.length) {
    const [first, last] = [points[0], points.at(-1)]
    drawing.append(
      svg('polygon', { class: 'area', points: `${x(first[0])},${FLOOR} ${path.join(' ')} ${x(last[0])},${FLOOR}` }),
      svg('polyline', { class: 'line', points: path.join(' ') }),
      svg('circle', { class: 'last', cx: x(last[0]) - 2, cy: y(last[1]), r: 3 }))
  }
  return el('figure', {}, el('figcaption', {}, title, el('b', {}, now)), drawing)
}

/** Two bars a day; `days` are [day, a, b], `wide` the room in pixels. */
export function barChart(title, days, wide) {
  const most = Math.max(0.000001, ...days.flatMap(([, a, b]) => [a, b]))
  const width = wide / days.length
  const labels = Math.ceil(48 / width)
  const middle = (left) => Math.min(left + width / 2, wide - HALF)
  const drawing = svg('svg', { viewBox: `0 0 ${wide} 170`, role: 'img', 'aria-label': title },
    svg('line', { class: 'axis', x1: 0, x2: wide, y1: 150, y2: 150 }),
    svg('text', { x: 0, y: 10 }, `${short(most)} MESH`))
  days.forEach(([day, a, b], index) => {
    const left = index * width
    for (const [value, kind, shift] of [[a, 'a', 0.12], [b, 'b', 0.5]]) {
      const height = Math.max(value > 0 ? 2 : 0, 130 * (value / most))
      drawing.append(svg('rect', { class: `bar ${kind}`, x: left + shift * width, y: 150 - height, width: 0.36 * width, height, rx: 2 },
        svg('title', {}, `${day}: ${value} MESH`)))
    }
    if ((days.length - 1 - index) % labels === 0) drawing.append(svg('text', { x: middle(left), y: 165, 'text-anchor': 'middle' }, day.slice(5)))
  })
  return drawing
}

function short(value) {
  if (value >= 1e6) return `${+(value / 1e6).toFixed(1)} M`
  if (value >= 1e4) return `${+(value / 1e3).toFixed(1)} k`
  return String(+value.toFixed(value < 10 ? 6 : 1))
}
