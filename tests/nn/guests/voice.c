/* Synthesizes three seconds of silence, vowels and silence, and asks a voice detector about each 32 ms: the input is a
 * window after the last 64 samples of the one before, the state of the run before, and the sampling rate, a scalar.
 * Writes the number of windows, the probabilities, and the samples. */
#include <math.h>

#include "use.h"

enum { RATE = 16000, WINDOW = 512, BEFORE = 64, SYLLABLE = 3200, GAP = 480, STATE = 2 * 128 };
enum { COUNT = 8000 + 8 * (SYLLABLE + GAP) + 12000, WINDOWS = (COUNT + WINDOW - 1) / WINDOW };

static float samples[WINDOWS * WINDOW];
static const double formants[3][3][2] = {
    {{730, 90}, {1090, 110}, {2440, 170}}, {{270, 60}, {2290, 100}, {3010, 150}}, {{300, 60}, {870, 100}, {2240, 150}}};
static const double tau = 6.283185307179586;

/* Pulses of a falling pitch through three resonators, each with two poles. */
static void say(float *out, int vowel) {
  static double wave[SYLLABLE];
  double phase = 0, most = 0;
  for (int i = 0; i < SYLLABLE; i++) {
    phase += 120 * (1 + 0.15 * sin(tau * 3 * i / RATE) - 0.2 * i / SYLLABLE) / RATE;
    wave[i] = phase >= 1;
    phase -= wave[i];
  }
  for (int f = 0; f < 3; f++) {
    double r = exp(-tau / 2 * formants[vowel][f][1] / RATE), a = 2 * r * cos(tau * formants[vowel][f][0] / RATE);
    double last = 0, before = 0;
    for (int i = 0; i < SYLLABLE; i++) {
      double value = wave[i] * (1 - r) + a * last - r * r * before;
      before = last;
      wave[i] = last = value;
    }
  }
  for (int i = 0; i < SYLLABLE; i++) most = fmax(most, fabs(wave[i]));
  for (int i = 0; i < SYLLABLE; i++) {
    double edge = fmin(1, fmin(i, SYLLABLE - 1 - i) / 400.0);
    out[i] = (float)(0.3 / most * edge * wave[i]);
  }
}

int main(void) {
  static float input[BEFORE + WINDOW], state[STATE], probabilities[WINDOWS];
  static const uint32_t input_dims[] = {1, BEFORE + WINDOW}, state_dims[] = {2, 1, 128};
  static const int word[] = {0, 1, 2, 0, 0, 1, 2, 0};
  int64_t rate = RATE;
  int32_t count = WINDOWS;
  for (int i = 0; i < 8; i++) say(samples + 8000 + i * (SYLLABLE + GAP), word[i]);
  nn_context context = use("voice");
  give(context, 2, NULL, 0, NN_TYPE_I64, &rate, sizeof rate);
  for (int i = 0; i < WINDOWS; i++) {
    memmove(input, input + WINDOW, BEFORE * sizeof *input);
    memcpy(input + BEFORE, samples + i * WINDOW, WINDOW * sizeof *input);
    give(context, 0, input_dims, 2, NN_TYPE_F32, input, sizeof input);
    give(context, 1, state_dims, 3, NN_TYPE_F32, state, sizeof state);
    check(nn_compute(context), "compute");
    take(context, 0, &probabilities[i], sizeof probabilities[i]);
    take(context, 1, state, sizeof state);
  }
  fwrite(&count, sizeof count, 1, stdout);
  fwrite(probabilities, sizeof probabilities, 1, stdout);
  fwrite(samples, sizeof samples, 1, stdout);
  return 0;
}
