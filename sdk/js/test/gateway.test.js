// Against the gateway at LLMESH_URL, which tests/sdk/test_js.py starts.

import assert from 'node:assert/strict'
import { test } from 'node:test'

import { MeshClient } from '../llmesh.js'

const skip = process.env.LLMESH_URL ? false : 'LLMESH_URL names no gateway'
const client = new MeshClient()
const SENTIMENT = { model: 'sentiment-analyzer', input: '这 太 棒 了' }

test('status, search, inference, plan, batch', { skip }, async () => {
  assert.equal((await client.status()).peers, 42)
  const [offer] = await client.searchModels({ name: 'sentiment', maxFee: 0.1, limit: 1 })
  assert.equal(offer.fee, 0.1)
  assert.equal((await client.inference(SENTIMENT)).output.text, SENTIMENT.input)
  assert.equal((await client.plan(SENTIMENT)).fee, 0.1)
  const [first, second] = await client.batch([SENTIMENT, { ...SENTIMENT, model: 'm@no-id' }])
  assert.deepEqual([first.provider, second.code], [offer.provider, 1004])
})

test('a stream', { skip }, async () => {
  const stream = client.stream(SENTIMENT)
  let text = ''
  for await (const piece of stream) text += piece.text
  assert.equal(text, SENTIMENT.input)
  assert.equal(stream.result.fee, 0.1)
  assert.equal(stream.result.request_id, stream.requestId)
})

test('a refusal', { skip }, async () => {
  await assert.rejects(client.inference({ ...SENTIMENT, timeout: -1 }), { code: 1004, name: 'ValidationFailed' })
  await assert.rejects(client.stream({ ...SENTIMENT, timeout: -1 }).next(), { code: 1004 })
})

for (const carrier of ['WebSocket', 'server-sent events']) {
  const without = typeof WebSocket === 'undefined' && carrier === 'WebSocket' && 'this Node has no WebSocket'
  test(`events by ${carrier}`, { skip: skip || without }, async () => {
    const socket = globalThis.WebSocket
    if (carrier !== 'WebSocket') delete globalThis.WebSocket
    let deployed
    const onState = () => (deployed ??= client.deploy(new Uint8Array(9), { name: 'mine', fee: '0.25' }))
    try {
      for await (const { event, data } of client.subscribe(['model_deployed'], { onState })) {
        assert.deepEqual([event, data.name, data.fee], ['model_deployed', 'mine', 0.25])
        break
      }
      assert.equal((await client.model(await deployed)).own, true)
      await client.removeModel(await deployed)
    } finally {
      globalThis.WebSocket = socket
    }
  })
}
