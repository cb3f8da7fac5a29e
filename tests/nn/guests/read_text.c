/* Finds a line of text in an image and reads it, with a detector and a recognizer. Standard input: width and height, as
 * 32-bit integers, multiples of 32, and the pixels, of three bytes. Writes the box (left, top, right, bottom), the number
 * of characters, and their numbers in the recognizer's alphabet. */
#include <math.h>

#include "use.h"

enum { HEIGHT = 48, LEAST = 320, MOST = 2048, CHARACTERS = 6625 };
static const float threshold = 0.3f, unclip = 1.6f;

static int32_t width, height;
static uint8_t *pixels;

static float scaled(float byte) { return (byte / 255 - 0.5f) / 0.5f; }

static float least(float a, float b) { return a < b ? a : b; }

/* Where there is text: all of the image is one line of it, or none. */
static void find(int32_t box[4]) {
  size_t area = (size_t)width * height;
  float *planes = room_for(3 * area * sizeof(float)), *map = room_for(area * sizeof(float));
  for (size_t i = 0; i < 3 * area; i++) planes[i % 3 * area + i / 3] = scaled(pixels[i]);
  uint32_t dims[] = {1, 3, (uint32_t)height, (uint32_t)width};
  nn_context context = use("detector");
  give(context, 0, dims, 4, NN_TYPE_F32, planes, 3 * area * sizeof(float));
  check(nn_compute(context), "compute");
  take(context, 0, map, area * sizeof(float));
  float left = width, top = height, right = 0, bottom = 0;
  for (int y = 0; y < height; y++)
    for (int x = 0; x < width; x++)
      if (map[y * width + x] > threshold) {
        left = fminf(left, x), right = fmaxf(right, x), top = fminf(top, y), bottom = fmaxf(bottom, y);
      }
  if (right <= left || bottom <= top) {
    fputs("no text\n", stderr);
    exit(1);
  }
  float w = right - left, h = bottom - top, more = w * h * unclip / (2 * (w + h)); /* the detector's boxes are small */
  box[0] = (int32_t)fmaxf(left - more, 0), box[1] = (int32_t)fmaxf(top - more, 0);
  box[2] = (int32_t)fminf(right + more, width - 1), box[3] = (int32_t)fminf(bottom + more, height - 1);
  free(planes), free(map);
}

/* The box as an image of HEIGHT rows, between whose pixels values are interpolated. */
static float *cut(const int32_t box[4], uint32_t *columns) {
  float w = box[2] - box[0], h = box[3] - box[1];
  uint32_t filled = (uint32_t)least(ceilf(HEIGHT * w / h), MOST);
  *columns = filled < LEAST ? LEAST : filled;
  float *planes = room_for(3 * HEIGHT * *columns * sizeof(float));
  for (int y = 0; y < HEIGHT; y++)
    for (uint32_t x = 0; x < filled; x++) {
      float sy = fmaxf((y + 0.5f) * h / HEIGHT - 0.5f, 0), sx = fmaxf((x + 0.5f) * w / filled - 0.5f, 0);
      int32_t y0 = (int32_t)sy, x0 = (int32_t)sx, y1 = y0 + 1 < h ? y0 + 1 : y0, x1 = x0 + 1 < w ? x0 + 1 : x0;
      float fy = sy - y0, fx = sx - x0;
      for (int c = 0; c < 3; c++) {
#define AT(row, column) pixels[((size_t)(box[1] + (row)) * width + box[0] + (column)) * 3 + c]
        float above = AT(y0, x0) * (1 - fx) + AT(y0, x1) * fx, below = AT(y1, x0) * (1 - fx) + AT(y1, x1) * fx;
        planes[(c * HEIGHT + y) * *columns + x] = scaled(above * (1 - fy) + below * fy);
      }
    }
  return planes;
}

int main(void) {
  if (fread(&width, 4, 1, stdin) + fread(&height, 4, 1, stdin) != 2) return 2;
  pixels = room_for((size_t)width * height * 3);
  if (fread(pixels, 3, (size_t)width * height, stdin) != (size_t)width * height) return 2;
  int32_t box[4], text[256], count = 0;
  uint32_t columns;
  find(box);
  float *line = cut(box, &columns);
  uint32_t dims[] = {1, 3, HEIGHT, columns};
  nn_context context = use("recognizer");
  give(context, 0, dims, 4, NN_TYPE_F32, line, 3 * HEIGHT * columns * sizeof(float));
  check(nn_compute(context), "compute");
  size_t room = columns * CHARACTERS * sizeof(float);
  float *scores = room_for(room);
  uint32_t steps = take(context, 0, scores, room) / (CHARACTERS * sizeof(float));
  for (uint32_t i = 0, last = 0; i < steps; i++) { /* the likeliest, once for each time, without 0, which is none */
    uint32_t best = 0;
    for (uint32_t c = 1; c < CHARACTERS; c++)
      if (scores[i * CHARACTERS + c] > scores[i * CHARACTERS + best]) best = c;
    if (best && best != last && count < 256) text[count++] = (int32_t)best;
    last = best;
  }
  fwrite(box, sizeof box, 1, stdout);
  fwrite(&count, sizeof count, 1, stdout);
  fwrite(text, sizeof *text, (size_t)count, stdout);
  return 0;
}
