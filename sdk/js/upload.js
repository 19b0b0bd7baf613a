// Sending a model, and telling how far it has come.

import { MeshError, ownError, read } from './errors.js'

// Only XMLHttpRequest tells a page how much has been sent.
export function sendByXhr(url, headers, body, onProgress, signal) {
  return new Promise((resolve, reject) => {
    const request = new XMLHttpRequest()
    const abort = () => request.abort()
    request.open('POST', url)
    for (const [name, value] of Object.entries(headers)) request.setRequestHeader(name, value)
    request.upload.onprogress = ({ loaded }) => onProgress(loaded, body.size)
    request.onload = () => resolve(read(new Response(request.response, { status: request.status })))
    request.onerror = () => reject(ownError('NodeUnreachable', `No node answers at ${url}.`))
    request.onabort = () => reject(signal.reason)
    if (signal?.aborted) return reject(signal.reason)
    signal?.addEventListener('abort', abort)
    request.onloadend = () => signal?.removeEventListener('abort', abort)
    request.send(body)
  })
}

export async function sendByFetch(url, headers, body, onProgress, signal) {
  const total = body instanceof Blob ? body.size : undefined
  let sent = 0
  const counting = new TransformStream({
    transform(piece, controller) {
      sent += piece.byteLength
      onProgress(sent, total)
      controller.enqueue(piece)
    },
  })
  const stream = (body instanceof Blob ? body.stream() : body).pipeThrough(counting)
  try {
    return await read(await fetch(url, { method: 'POST', headers, body: stream, duplex: 'half', signal }))
  } catch (error) {
    if (error instanceof MeshError || signal?.aborted) throw error
    throw ownError('NodeUnreachable', `No node answers at ${url}.`)
  }
}
