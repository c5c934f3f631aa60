/* The CIFAR-10 network of Lai et al. 2018 (arXiv 1801.06601, table 1), one function for each layer.
 * Built by cycles_cmsis_cifar10.py against the user's own CMSIS 5 checkout. Layout is HWC, type q7. */
#include "arm_nnfunctions.h"

static q7_t image[32 * 32 * 3];
static q7_t conv1_w[32 * 5 * 5 * 3], conv1_b[32];
static q7_t conv2_w[32 * 5 * 5 * 32], conv2_b[32];
static q7_t conv3_w[64 * 5 * 5 * 32], conv3_b[64];
static q7_t fc_w[10 * 4 * 4 * 64], fc_b[10];
static q7_t large[32 * 32 * 32], small[16 * 16 * 32], logits[10]; /* activations, used in turn */
static q15_t columns[2 * 5 * 5 * 32];                              /* im2col of two output pixels */

void conv1(void) {
    arm_convolve_HWC_q7_RGB(image, 32, 3, conv1_w, 32, 5, 2, 1, conv1_b, 0, 9, large, 32, columns, NULL);
}
void relu1(void) { arm_relu_q7(large, 32 * 32 * 32); }
void pool1(void) { arm_maxpool_q7_HWC(large, 32, 32, 3, 0, 2, 16, NULL, small); }
void conv2(void) {
    arm_convolve_HWC_q7_fast(small, 16, 32, conv2_w, 32, 5, 2, 1, conv2_b, 0, 9, large, 16, columns, NULL);
}
void relu2(void) { arm_relu_q7(large, 16 * 16 * 32); }
void pool2(void) { arm_maxpool_q7_HWC(large, 16, 32, 3, 0, 2, 8, NULL, small); }
void conv3(void) {
    arm_convolve_HWC_q7_fast(small, 8, 32, conv3_w, 64, 5, 2, 1, conv3_b, 0, 7, large, 8, columns, NULL);
}
void relu3(void) { arm_relu_q7(large, 8 * 8 * 64); }
void pool3(void) { arm_maxpool_q7_HWC(large, 8, 64, 3, 0, 2, 4, NULL, small); }
void fc(void) { arm_fully_connected_q7_opt(small, fc_w, 4 * 4 * 64, 10, 0, 7, fc_b, logits, columns); }
