import assert from 'node:assert/strict'
import { once } from 'node:events'
import { test } from 'node:test'

import { MeshClient, MeshError } from '../llmesh.js'
import { fakeNode, json, sendFrame } from './fake.js'

const WANTED = { model: 'm', input: 'x' }

test('the url of a gateway has a scheme that can be fetched', () => {
  assert.throws(() => new MeshClient({ url: 'ftp://localhost' }), TypeError)
  assert.equal(new MeshClient({ url: 'http://localhost:1//' }).url, 'http://localhost:1')
})

test('a search names only what is wanted, and shows its key', async (t) => {
  const { url, asked } = await fakeNode(t, ({ response }) => json(response, { models: [] }))
  const client = new MeshClient({ url, key: 'llmesh_k' })
  assert.deepEqual(await client.searchModels({ name: 'a b&c', maxFee: '0.1' }), [])
  assert.equal(asked[0].url, '/api/v1/models?name=a+b%26c&max_fee=0.1')
  assert.equal(asked[0].headers.authorization, 'Bearer llmesh_k')
})

test('wishes travel under their names on the wire', async (t) => {
  const { url, asked } = await fakeNode(t, ({ response }) => json(response, { output: {} }))
  await new MeshClient({ url }).inference({ ...WANTED, maxFee: '0.5', minStake: 3, idempotencyKey: 'k' })
  assert.deepEqual(JSON.parse(asked[0].body), { ...WANTED, max_fee: '0.5', min_stake: 3 })
  assert.equal(asked[0].headers['idempotency-key'], 'k')
})

test('a problem becomes a MeshError with what to do next', async (t) => {
  const told = {
    code: 2003, name: 'NodeBusy', detail: 'No room.', next_step: 'Wait.', request_id: 'r', retry_after: 2,
  }
  const { url } = await fakeNode(t, ({ response }) => json(response, told, 503))
  await assert.rejects(new MeshClient({ url }).inference(WANTED), (error) => {
    assert(error instanceof MeshError)
    const { code, name, message, nextStep, requestId, retryAfter, status } = error
    assert.deepEqual(
      { code, name, message, nextStep, requestId, retryAfter, status },
      {
        code: 2003, name: 'NodeBusy', message: 'No room.', nextStep: 'Wait.', requestId: 'r', retryAfter: 2,
        status: 503,
      },
    )
    return true
  })
})

test('what is no node, and no answer at all, are told apart', async (t) => {
  const { url, server } = await fakeNode(t, ({ response }) => response.end('<html>'))
  await assert.rejects(new MeshClient({ url }).status(), { code: 2001, name: 'NetworkError' })
  server.closeAllConnections()
  server.close()
  await once(server, 'close')
  await assert.rejects(new MeshClient({ url }).status(), { code: 2002, name: 'NodeUnreachable' })
})

test('rows of a batch fail for themselves', async (t) => {
  const results = [{ result: { output: { a: 1 } } }, { error: { code: 1001, name: 'ModelNotFound', detail: 'No.' } }]
  const { url } = await fakeNode(t, ({ response }) => json(response, { results }))
  const [first, second] = await new MeshClient({ url }).batch([WANTED, WANTED])
  assert.equal(first.output.a, 1)
  assert(second instanceof MeshError && second.code === 1001)
})

test('a signal gives a call up with its own reason', async (t) => {
  const { url } = await fakeNode(t, () => {})
  const leave = new AbortController()
  const call = new MeshClient({ url }).inference({ ...WANTED, signal: leave.signal })
  leave.abort(new Error('enough'))
  await assert.rejects(call, /enough/)
})

test('a stream gives its text and then its result', async (t) => {
  const { url, asked } = await fakeNode(t, ({ response }) => {
    sendFrame(response, { type: 'accepted', id: 'r', request_id: 'r', queued: 0 })
    sendFrame(response, { type: 'chunk', id: 'r', index: 0, text: '从前\n' })
    response.write(': a comment\r\n\r\nevent: chunk\r\ndata: {"type": "chunk", "index": 1,\r\ndata: "text": "!"}\r\n\r\n')
    sendFrame(response, { type: 'completed', id: 'r', output: { text: '从前\n!' }, fee: 0.1 })
    response.end()
  })
  const stream = new MeshClient({ url }).stream(WANTED)
  const pieces = []
  for await (const { text } of stream) pieces.push(text)
  assert.deepEqual(pieces, ['从前\n', '!'])
  assert.deepEqual(stream.result, { output: { text: '从前\n!' }, fee: 0.1 })
  assert.equal(stream.requestId, 'r')
  assert.equal(asked[0].headers.accept, 'text/event-stream')
})

for (const [how, leave] of [
  ['leaving the loop', async (stream) => { for await (const _ of stream) break }],
  ['return', async (stream) => { await stream.next(); await stream.return() }],
  ['return while a piece is awaited', async (stream) => {
    await stream.next()
    const next = stream.next()
    await stream.return()
    assert.deepEqual(await next, { done: true, value: undefined })
  }],
]) {
  test(`${how} hangs up`, async (t) => {
    let hungUp
    const { url } = await fakeNode(t, ({ response }) => {
      hungUp = once(response, 'close')
      sendFrame(response, { type: 'chunk', index: 0, text: 'a' })
    })
    const stream = new MeshClient({ url }).stream(WANTED)
    await leave(stream)
    await hungUp
    assert.deepEqual(await stream.next(), { done: true, value: undefined })
  })
}

test('a stream that breaks off or fails says so', async (t) => {
  const { url } = await fakeNode(t, ({ response, count }) => {
    sendFrame(response, { type: 'chunk', index: 0, text: 'a' })
    if (count === 1) return response.end()
    if (count === 2) return setTimeout(() => response.destroy(), 20)
    sendFrame(response, { type: 'error', code: 2004, name: 'ModelFailed', message: 'It died.', next_step: 'Look.' })
    response.end()
  })
  const client = new MeshClient({ url })
  const all = async () => { for await (const _ of client.stream(WANTED)); }
  await assert.rejects(all(), { code: 2001 })
  await assert.rejects(all(), { code: 2001 })
  await assert.rejects(all(), { code: 2004, nextStep: 'Look.' })
})

test('a refused stream is the problem that was told', async (t) => {
  const { url } = await fakeNode(t, ({ response }) => json(response, { code: 1001, name: 'ModelNotFound' }, 404))
  await assert.rejects(new MeshClient({ url }).stream(WANTED).next(), { code: 1001 })
})

test('events go on after a connection that broke, and end by the signal', async (t) => {
  delete globalThis.WebSocket
  const { url, asked } = await fakeNode(t, ({ response, count }) => {
    sendFrame(response, { type: 'subscribed', events: ['inference'] })
    sendFrame(response, { type: 'event', event: 'inference', data: { count }, dropped: 0 })
    if (count === 1) response.end()
  })
  const states = []
  const leave = new AbortController()
  const seen = []
  const events = new MeshClient({ url }).subscribe(['inference'], {
    signal: leave.signal,
    onState: (state) => states.push(state),
  })
  for await (const { data } of events) {
    seen.push(data.count)
    if (seen.length === 2) leave.abort()
  }
  assert.deepEqual(seen, [1, 2])
  assert.deepEqual(states, ['connected', 'waiting', 'connected'])
  assert.equal(asked[0].url, '/api/v1/events?names=inference')
})

test('a model is sent with its progress', async (t) => {
  const { url, asked } = await fakeNode(t, ({ response }) => json(response, { model_id: 'ab' }, 201))
  const client = new MeshClient({ url, key: 'llmesh_k' })
  const told = []
  const data = new Uint8Array(200_000).fill(7)
  const onProgress = (sent, total) => told.push([sent, total])
  assert.equal(await client.deploy(data, { name: 'm', fee: '0.1', description: undefined }, { onProgress }), 'ab')
  assert.equal(asked[0].url, '/api/v1/models?name=m&fee=0.1')
  assert.equal(asked[0].body.length, data.length)
  assert.deepEqual(told.at(-1), [200_000, 200_000])
  const stream = new Blob([data]).stream()
  assert.equal(await client.deploy(stream, { name: 'm' }, { onProgress }), 'ab')
  assert.deepEqual(told.at(-1), [200_000, undefined])
})
