// Making elements.  Everything foreign becomes text; nothing is ever parsed as HTML.

const SVG = 'http://www.w3.org/2000/svg'

export const byId = (id) => document.getElementById(id)

export function el(tag, attributes = {}, ...children) {
  return fill(document.createElement(tag), attributes, children)
}

export function svg(tag, attributes = {}, ...children) {
  return fill(document.createElementNS(SVG, tag), attributes, children)
}

function fill(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith('on')) element.addEventListener(name.slice(2), value)
    else if (value !== undefined && value !== false) element.setAttribute(name, String(value))
  }
  element.append(...children.filter((child) => child !== undefined && child !== null && child !== false && child !== '').map(node))
  return element
}

const node = (child) => (child instanceof Node ? child : document.createTextNode(String(child)))

/** Terms and what they say, for a `dl`. */
export function facts(rows, wrapped = false) {
  const given = rows.filter(([, value]) => value !== undefined && value !== null && value !== '')
  const pairs = given.map(([term, value, kind]) => [el('dt', {}, term), el('dd', kind ? { class: kind } : {}, value)])
  return wrapped ? pairs.map((pair) => el('div', {}, ...pair)) : pairs.flat()
}

/** MESH for people; `free` is the word for nothing. */
export function mesh(amount, free) {
  if (free && !amount) return free
  return `${amount.toLocaleString(document.documentElement.lang, { maximumFractionDigits: 6 })} MESH`
}

/** Twelve characters of something long that still tell it from others. */
export const brief = (id) => (id && id.length > 16 ? `${id.slice(0, 4)}…${id.slice(-8)}` : id)
