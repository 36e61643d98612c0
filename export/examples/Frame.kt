// The interleaved detector on a video, frame by frame, with the Interpreter of LiteRT or TensorFlow
// Lite, for int8 bundles. Everything that differs from bundle to bundle is read in manifest.json.

package memvid

import java.io.File
import java.nio.ByteBuffer
import java.nio.ByteOrder
import org.json.JSONArray
import org.json.JSONObject
import org.tensorflow.lite.Interpreter

/** box: ymin, xmin, ymax, xmax, in 0..1 of the frame. */
class Detection(val label: String, val score: Float, val box: FloatArray)

/** The tensor of the state that goes into a call as [input] and comes out of it as [output]. */
private class State(spec: JSONObject, bytes: Int) {
  val input: String = spec.getString("input")
  val output: String = spec.getString("output")
  var now = buffer(bytes)
  var next = buffer(bytes)
  private val initial = spec.getInt("initial").toByte()

  fun clear() {
    for (i in 0 until now.capacity()) now.put(i, initial)
  }

  fun advance() {
    val old = now
    now = next
    next = old
  }
}

private fun buffer(bytes: Int): ByteBuffer =
  ByteBuffer.allocateDirect(bytes).order(ByteOrder.nativeOrder())

/** For one thread. [bundle] is a folder: assets have to be copied to files first. */
class InterleavedDetector(bundle: File, threads: Int = 1) : AutoCloseable {
  private val manifest = JSONObject(File(bundle, "manifest.json").readText())
  private val graphs = manifest.getJSONObject("graphs")
  private val calls = manifest.getJSONObject("calls")
  private val image = manifest.getJSONObject("image")
  private val updatesState = manifest.getJSONObject("updates_state")
  private val tau = manifest.getInt("tau")
  private val labels = File(bundle, manifest.getString("labels")).readLines()

  private val interpreters = listOf("f0", "f1", "memory", "post").associateWith { graph ->
    val file = File(bundle, graphs.getJSONObject(graph).getString("file"))
    Interpreter(file, Interpreter.Options().setNumThreads(threads))
  }

  private val memoryStep = calls.getJSONArray("f0").getString(1)
  private val post = calls.getJSONArray("post").getString(0)
  private val features = buffer(bytes(memoryStep, "inputs", "features"))
  private val heads = outputs(memoryStep, "box_encodings", "class_logits")
  private val found = outputs(post, "boxes", "scores", "classes", "count")
  private val images = listOf("f0", "f1").associateWith { extractor ->
    buffer(bytes(calls.getJSONArray(extractor).getString(0), "inputs", "image"))
  }
  private val states = manifest.getJSONArray("state").let { specs ->
    List(specs.length()) { i ->
      val spec = specs.getJSONObject(i)
      State(spec, bytes(memoryStep, "inputs", spec.getString("input")))
    }
  }
  private var index = 0

  init {
    require(manifest.getString("precision") == "int8")
    restart()
  }

  /** Call this where another video begins. */
  fun restart() {
    index = 0
    states.forEach { it.clear() }
  }

  /** What is seen in the next frame: RGB, three bytes a pixel, of the size `image.f0`. */
  fun detect(frame: ByteArray): List<Detection> {
    val extractor = if (index % (tau + 1) == 0) "f0" else "f1"
    val picture = images.getValue(extractor)
    prepare(frame, extractor, picture)
    val extract = calls.getJSONArray(extractor).getString(0)
    run(extract, mapOf("image" to picture), mapOf("features" to features))
    val memory = calls.getJSONArray(extractor).getString(1)
    val written =
      if (memory == memoryStep) states.associate { it.output to it.next } else emptyMap()
    run(
      memory,
      mapOf("features" to features) + states.associate { it.input to it.now },
      heads + written,
    )
    if (updatesState.getBoolean(extractor)) states.forEach { it.advance() }
    run(post, heads, found)
    index += 1
    return detections()
  }

  private fun detections(): List<Detection> {
    val (boxes, scores, classes, count) =
      listOf("boxes", "scores", "classes", "count").map { found.getValue(it).asFloatBuffer() }
    return List(count.get(0).toInt()) { i ->
      val box = FloatArray(4) { side -> boxes.get(4 * i + side) }
      Detection(labels[classes.get(i).toInt()], scores.get(i), box)
    }
  }

  /** The mean of each block of pixels, rounded half up, as int8; f0's blocks are single pixels. */
  private fun prepare(frame: ByteArray, extractor: String, target: ByteBuffer) {
    val (height, width) = image.getJSONArray("f0").let { listOf(it.getInt(0), it.getInt(1)) }
    val factor = height / image.getJSONArray(extractor).getInt(0)
    val area = factor * factor
    require(frame.size == height * width * 3)
    target.rewind()
    for (y in 0 until height step factor) for (x in 0 until width step factor) {
      for (channel in 0 until 3) {
        var sum = area / 2
        for (dy in 0 until factor) for (dx in 0 until factor) {
          sum += frame[((y + dy) * width + x + dx) * 3 + channel].toInt() and 0xff
        }
        target.put(stored[sum / area])
      }
    }
  }

  /** The int8 value of each pixel value. */
  private val stored = ByteArray(256).also { table ->
    val spec = tensor(calls.getJSONArray("f0").getString(0), "inputs", "image")
    val (mean, std) = listOf(image.getDouble("mean"), image.getDouble("std"))
    for (pixel in 0..255) {
      val value = (pixel - mean) / std / spec.getDouble("scale")
      val rounded = Math.rint(value).toInt() + spec.getInt("zero_point")
      table[pixel] = rounded.coerceIn(-128, 127).toByte()
    }
  }

  private fun run(call: String, inputs: Map<String, ByteBuffer>, outputs: Map<String, ByteBuffer>) {
    val (graph, signature) = call.split("/")
    (inputs.values + outputs.values).forEach { it.rewind() }
    interpreters.getValue(graph).runSignature(inputs, outputs, signature)
    outputs.values.forEach { it.rewind() }
  }

  private fun outputs(call: String, vararg names: String): Map<String, ByteBuffer> =
    names.associateWith { buffer(bytes(call, "outputs", it)) }

  private fun bytes(call: String, side: String, name: String): Int {
    val spec = tensor(call, side, name)
    val shape: JSONArray = spec.getJSONArray("shape")
    val elements = (0 until shape.length()).fold(1) { product, i -> product * shape.getInt(i) }
    return elements * if (spec.getString("dtype") == "float32") 4 else 1
  }

  private fun tensor(call: String, side: String, name: String): JSONObject {
    val (graph, signature) = call.split("/")
    val signatures = graphs.getJSONObject(graph).getJSONObject("signatures")
    return signatures.getJSONObject(signature).getJSONObject(side).getJSONObject(name)
  }

  override fun close() = interpreters.values.forEach { it.close() }
}
