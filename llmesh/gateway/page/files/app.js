// The page of a node: puts its parts together.

import { Activity } from './activity.js'
import { Deployment } from './deploy.js'
import { byId } from './dom.js'
import { Mesh } from './mesh.js'
import { showModels } from './models.js'
import { showMoney } from './money.js'
import { showError } from './notice.js'
import { copyId, showOverview } from './overview.js'
import { pulse, showPeers } from './peers.js'
import { Playground } from './playground.js'
import { MeshClient } from './sdk/llmesh.js'
import { languages, say, setLanguage } from './words.js'

const KEY = 'llmesh-key'
const key = sessionStorage.getItem(KEY) ?? undefined
const client = new MeshClient({ key })
const mesh = new Mesh(client, (error) => (error.code === 4001 ? askForKey(error) : showError(error)))
const playground = new Playground(client, mesh)
const activity = new Activity(mesh)
new Deployment(client, () => mesh.refresh('offers'))
let state = 'waiting'

function show(what) {
  if (what === 'status') activity.sample()
  if (what === 'status' || what === 'all') showOverview(mesh)
  if (what !== 'wallet') showModels(mesh, (offer) => playground.choose(offer))
  if (what !== 'wallet') playground.show()
  if (what !== 'wallet' && what !== 'offers') showPeers(mesh)
  if (what === 'wallet' || what === 'all') showMoney(mesh)
  if (what === 'status' || what === 'all') activity.show()
}

function showState(now) {
  state = now
  byId('live').textContent = say(now)
  byId('live').classList.toggle('on', now === 'connected')
}

async function listen() {
  for (;;) {
    try {
      for await (const told of client.subscribe([], { onState: showState })) {
        mesh.note(told)
        activity.note(told)
        if (told.event === 'inference') {
          pulse(mesh, told.data.provider)
          activity.show()
        }
      }
    } catch (error) {
      showState('waiting')
      if (error.code === 4001) return // the key is asked for already
    }
    await new Promise((resolve) => setTimeout(resolve, 5_000))
  }
}

// --- the key, the language, the theme ---------------------------------------------------------------

function askForKey(error) {
  const dialog = byId('ask-key')
  if (dialog.open) return
  byId('key-why').textContent = key ? error.message : say('keyWhence')
  dialog.showModal()
}

function keep(name, value) {
  localStorage.setItem(name, value)
  return value
}

function useLanguage(language) {
  setLanguage(language)
  byId('language').textContent = say('other')
  byId('language').lang = language === 'zh' ? 'en' : 'zh'
  useTheme(document.documentElement.dataset.theme)
  showState(state)
  activity.showLog()
  show('all')
}

function useTheme(theme) {
  document.documentElement.dataset.theme = theme
  byId('theme').textContent = say(theme === 'dark' ? 'light' : 'dark')
}

byId('ask-key').addEventListener('cancel', (event) => event.preventDefault())
byId('key-form').addEventListener('submit', () => {
  sessionStorage.setItem(KEY, byId('key-text').value.trim())
  location.reload()
})
byId('key').hidden = !key
byId('key').addEventListener('click', () => {
  sessionStorage.removeItem(KEY)
  location.reload()
})
byId('language').addEventListener('click', () =>
  useLanguage(keep('llmesh-language', document.documentElement.lang === 'en' ? 'zh' : 'en')))
byId('theme').addEventListener('click', () =>
  useTheme(keep('llmesh-theme', document.documentElement.dataset.theme === 'dark' ? 'light' : 'dark')))
byId('copy-id').addEventListener('click', () => copyId().catch(showError))
byId('filter').addEventListener('input', () => show('offers'))
addEventListener('unhandledrejection', ({ reason }) => showError(reason))

const wantsDark = matchMedia('(prefers-color-scheme: dark)')
const preferred = navigator.languages.map((tag) => tag.slice(0, 2)).find((tag) => languages.includes(tag))
document.documentElement.dataset.theme = localStorage.getItem('llmesh-theme') ?? (wantsDark.matches ? 'dark' : 'light')
useLanguage(localStorage.getItem('llmesh-language') ?? preferred ?? 'en')
mesh.onChange(show)
mesh.start()
listen()
