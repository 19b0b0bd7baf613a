// A server that answers as a test says, and remembers what it was asked.

import { createServer } from 'node:http'

export async function fakeNode(t, answer) {
  const asked = []
  const server = createServer(async (request, response) => {
    const pieces = []
    for await (const piece of request) pieces.push(piece)
    const { method, url, headers } = request
    asked.push({ method, url, headers, body: Buffer.concat(pieces) })
    await answer({ request, response, count: asked.length })
  })
  await new Promise((resolve) => server.listen(0, '127.0.0.1', resolve))
  t.after(() => {
    server.closeAllConnections()
    server.close()
  })
  return { url: `http://127.0.0.1:${server.address().port}`, asked, server }
}

export function json(response, body, status = 200) {
  response.writeHead(status, { 'Content-Type': 'application/json' }).end(JSON.stringify(body))
}

export function sendFrame(response, frame) {
  if (!response.headersSent) response.writeHead(200, { 'Content-Type': 'text/event-stream' })
  response.write(`event: ${frame.type}\ndata: ${JSON.stringify(frame)}\n\n`)
}
