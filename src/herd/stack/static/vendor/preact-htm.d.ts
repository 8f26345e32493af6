// The names that the page uses of Preact and htm.
export type Element = any;
export function html(strings: TemplateStringsArray, ...values: any[]): Element;
export function h(kind: any, props?: any, ...children: any[]): Element;
export function render(what: Element, where: HTMLElement): void;
export class Component<P = any, S = any> {
  constructor(props?: P);
  props: any;
  state: S;
  setState(patch: any): void;
}
export function useState<T>(first: T | (() => T)): [T, (next: T | ((before: T) => T)) => void];
export function useEffect(work: () => void | (() => void), when?: any[]): void;
export function useLayoutEffect(work: () => void | (() => void), when?: any[]): void;
export function useMemo<T>(make: () => T, when: any[]): T;
export function useRef<T>(first: T): { current: T };
