/* Huffman codes: how long each one is, and in which order they come. */
#include "huffman.h"

#include <string.h>

/* Symbols and their weights, then lengths, the rarest first. */
struct leaves {
    unsigned count;
    uint8_t symbols[256];
    uint32_t weights[256];
};

static void sort_leaves(struct leaves *leaves, const uint32_t *counts)
{
    unsigned n = 0;
    for (unsigned symbol = 0; symbol < 256; symbol++) {
        if (!counts[symbol]) {
            continue;
        }
        unsigned at = n++;
        for (; at && leaves->weights[at - 1] > counts[symbol]; at--) {
            leaves->weights[at] = leaves->weights[at - 1];
            leaves->symbols[at] = leaves->symbols[at - 1];
        }
        leaves->weights[at] = counts[symbol];
        leaves->symbols[at] = (uint8_t)symbol;
    }
    leaves->count = n;
}

/* Four codes of two bits are the smallest code there is; symbols that do not occur make up the number. */
static void pad_leaves(struct leaves *leaves, const uint32_t *counts)
{
    for (unsigned symbol = 0; leaves->count < 4; symbol++) {
        if (!counts[symbol]) {
            memmove(leaves->symbols + 1, leaves->symbols, leaves->count);
            memmove(leaves->weights + 1, leaves->weights, leaves->count * sizeof(leaves->weights[0]));
            leaves->symbols[0] = (uint8_t)symbol;
            leaves->weights[0] = 1;
            leaves->count++;
        }
    }
}

/* Sorted weights become depths, in place: A. Moffat, J. Katajainen, In-Place Calculation of Minimum-Redundancy Codes (1995). */
static void weights_to_depths(uint32_t *a, int n)
{
    int root = 0;
    int leaf = 2;
    a[0] += a[1];
    for (int next = 1; next < n - 1; next++) { /* inner nodes get their weight, and the node above those that were joined */
        bool inner = leaf >= n || a[root] < a[leaf];
        a[next] = inner ? a[root] : a[leaf++];
        if (inner) {
            a[root++] = (uint32_t)next;
        }
        inner = leaf >= n || (root < next && a[root] < a[leaf]);
        a[next] += inner ? a[root] : a[leaf++];
        if (inner) {
            a[root++] = (uint32_t)next;
        }
    }
    a[n - 2] = 0;
    for (int next = n - 3; next >= 0; next--) { /* depths of inner nodes, from the root down */
        a[next] = a[a[next]] + 1;
    }
    int open = 1;
    int inner = n - 2;
    int next = n - 1;
    for (uint32_t depth = 0; open > 0; depth++) { /* depths of leaves: what of a level is no inner node */
        int used = 0;
        for (; inner >= 0 && a[inner] == depth; inner--) {
            used++;
        }
        for (; open > used; open--) {
            a[next--] = depth;
        }
        open = 2 * used;
    }
}

/* Bring depths into the allowed range and fill the code space exactly: longer codes first for what is rare, then shorter ones for
 * what is frequent. A percent or less from the optimum, where it has to do anything at all.
 */
static void limit_depths(uint32_t *depths, unsigned n, unsigned longest)
{
    int space = 0;
    for (unsigned i = 0; i < n; i++) {
        depths[i] = depths[i] < HUFFMAN_LENGTH_MIN ? HUFFMAN_LENGTH_MIN : depths[i];
        depths[i] = depths[i] > longest ? longest : depths[i];
        space += huffman_space(depths[i]);
    }
    for (unsigned i = 0; space > HUFFMAN_SPACE; i = (i + 1) % n) {
        if (depths[i] < longest) {
            depths[i]++;
            space -= huffman_space(depths[i]);
        }
    }
    for (bool again = space < HUFFMAN_SPACE; again;) {
        again = false;
        for (unsigned i = n; i-- > 0;) {
            if (depths[i] > HUFFMAN_LENGTH_MIN && space + huffman_space(depths[i]) <= HUFFMAN_SPACE) {
                space += huffman_space(depths[i]);
                depths[i]--;
                again = true;
            }
        }
    }
}

void huffman_choose_lengths(struct huffman_scratch *scratch, unsigned longest)
{
    struct leaves leaves = {0};
    sort_leaves(&leaves, scratch->counts[0]);
    pad_leaves(&leaves, scratch->counts[0]);
    weights_to_depths(leaves.weights, (int)leaves.count);
    limit_depths(leaves.weights, leaves.count, longest);
    memset(scratch->lengths, 0, sizeof(scratch->lengths));
    for (unsigned i = 0; i < leaves.count; i++) {
        scratch->lengths[leaves.symbols[i]] = (uint8_t)leaves.weights[i];
    }
}

unsigned huffman_order_symbols(struct huffman_scratch *scratch)
{
    unsigned next[HUFFMAN_LENGTH_MAX + 2] = {0};
    for (unsigned symbol = 0; symbol < 256; symbol++) {
        next[scratch->lengths[symbol] + 1]++;
    }
    next[1] = 0; /* length 0: no code */
    for (unsigned length = 1; length <= HUFFMAN_LENGTH_MAX; length++) {
        next[length + 1] += next[length];
    }
    for (unsigned symbol = 0; symbol < 256; symbol++) {
        if (scratch->lengths[symbol]) {
            scratch->order[next[scratch->lengths[symbol]]++] = (uint8_t)symbol;
        }
    }
    return next[HUFFMAN_LENGTH_MAX];
}
