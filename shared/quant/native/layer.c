/* Whole layers for one token, in one call: the same products and the same steps between them, with the same bits. */
#include "heads.h"

typedef struct {
    const Heads *heads;
    const void *norm, *second_norm, *query_norm, *key_norm; /* the last two may be NULL */
    int64_t num_first;                                      /* how many of `first` there are */
    Factor first[MOST_FACTORS], output, gate_up, down;      /* without addresses of inputs and results */
} Layer;

INLINE int multiply_by(Factor by, const void *inputs, const void *norm, const void *residual, void *outputs) {
    by.residual = residual;
    by.outputs = outputs;
    return layermesh_multiply_each(&by, 1, inputs, norm, 1);
}

/* Where a layer's keys and values of one sequence lie: [heads of keys][tokens][size] with steps of their own. */
typedef struct {
    void *keys, *values;
    int64_t key_head_step, key_step, value_head_step, value_step;
} Room;

/* Write the keys, or the values, of one token to those before it. */
INLINE void keep(const Heads *heads, const char *states, void *room, int64_t head_step, int64_t at) {
    int64_t item = heads->bfloat ? 2 : 4;
    for (int64_t head = 0; head < heads->keys; head++)
        memcpy((char *)room + (head * head_step + at) * item, states + head * heads->size * item, (size_t)(heads->size * item));
}

/* Bytes for one token inside of a layer, and for what it hands on. */
INLINE size_t inside_of(const Layer *layer) {
    const Heads *heads = layer->heads;
    int64_t looking = heads->queries * heads->size, numbers = heads->width + looking + layer->down.matrix->columns;
    return (size_t)((numbers + layer->down.matrix->used) * (heads->bfloat ? 2 : 4));
}

INLINE size_t handed_on(const Layer *layer) { return (size_t)(layer->down.matrix->used * (layer->heads->bfloat ? 2 : 4)); }

static int pass_layer(
    const Layer *layer, const Room *room, const void *inputs, const void *cosine, const void *sine, void *results, int64_t past,
    char *states
) {
    const Heads *heads = layer->heads;
    int64_t item = heads->bfloat ? 2 : 4, looking = heads->queries * heads->size, keeping = heads->keys * heads->size;
    char *column = states, *found = states + heads->width * item, *middle = found + looking * item;
    char *gated = middle + layer->down.matrix->used * item;
    Factor first[MOST_FACTORS];
    for (int64_t i = 0; i < layer->num_first; i++) {
        first[i] = layer->first[i];
        first[i].outputs = column;
        column += first[i].matrix->used * item;
    }
    int failed = layermesh_multiply_each(first, layer->num_first, inputs, layer->norm, 1);
    layermesh_turn(heads, states, cosine, sine, layer->query_norm, layer->key_norm, 1);
    keep(heads, states + looking * item, room->keys, room->key_head_step, past * room->key_step);
    keep(heads, states + (looking + keeping) * item, room->values, room->value_head_step, past * room->value_step);
    failed |= layermesh_attend(
        heads, states, room->keys, room->values, found, room->key_head_step, room->key_step, room->value_head_step,
        room->value_step, past + 1
    );
    failed |= multiply_by(layer->output, found, NULL, inputs, middle);
    failed |= multiply_by(layer->gate_up, middle, layer->second_norm, NULL, gated);
    failed |= multiply_by(layer->down, gated, NULL, middle, results);
    return failed;
}

/* Set `results`, [hidden], to what `count` layers, one behind the other, make of `inputs`, of the token behind `past` others;
 * its keys and values come to theirs in `rooms`. `results` may not be `inputs`. Returns 0, or 1 without memory. */
int layermesh_pass_token(
    const Layer *const *layers, const Room *const *rooms, const void *inputs, const void *cosine, const void *sine,
    void *results, int64_t count, int64_t past
) {
    size_t inside = 0, between = 0;
    for (int64_t i = 0; i < count; i++) {
        inside = inside_of(layers[i]) > inside ? inside_of(layers[i]) : inside;
        between = handed_on(layers[i]) > between ? handed_on(layers[i]) : between;
    }
    char *hidden = malloc(2 * between + inside);
    if (!hidden) return 1;
    int failed = 0;
    for (int64_t i = 0; i < count; i++) {
        void *made = i + 1 < count ? hidden + (size_t)(i % 2) * between : results;
        failed |= pass_layer(layers[i], rooms[i], inputs, cosine, sine, made, past, hidden + 2 * between);
        inputs = made;
    }
    free(hidden);
    return failed;
}
